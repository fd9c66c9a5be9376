"""Saved models opened where this package is missing, by the code in their directories."""

import ast
import inspect
import json
import sys

import pytest
import torch
from helpers.architectures import CONFIGS, tiny
from helpers.small_models import small_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import lpa
from lpa.model.hub.remote_code import low_rank_code, lpa_code

pytestmark = [
    pytest.mark.filterwarnings("ignore::lpa.errors.LPAWarning"),
    pytest.mark.xdist_group("elsewhere"),
]


def factorized(name):
    model = tiny(name)
    lpa.factorize(model, "all", rank=5)
    return model


def head(auto, config):
    torch.manual_seed(0)
    return auto.from_config(config).eval()


def lpa_head(auto):
    return head(auto, small_model(num_labels=3, pad_token_id=0).config)


def low_rank_head():
    model = head(AutoModelForTokenClassification, CONFIGS["qwen2"]())
    lpa.factorize(model, "all", rank=5)
    return model


MODELS = {
    "attention": lambda: small_model(placement="attention"),
    "all": lambda: small_model(placement="all", residual_scaling=True),
    "paper": lambda: small_model(decoder_type="paper", placement="all", lm_head_bias=True),
    "cola": lambda: small_model(placement="all", low_rank_method="cola"),
    "sltrain": lambda: small_model(placement="all", low_rank_method="sltrain"),
    "per_layer": lambda: small_model(ranks={"q_proj": [4, None], "v_proj": 6, "k_proj": None}),
    "tied": lambda: small_model(tie_word_embeddings=True),
    "classifier": lambda: lpa_head(AutoModelForSequenceClassification),
    "token classifier": lambda: lpa_head(AutoModelForTokenClassification),
    "question answering": lambda: lpa_head(AutoModelForQuestionAnswering),
    "gpt2": lambda: factorized("gpt2"),
    "qwen2": lambda: factorized("qwen2"),
    "qwen2 token classifier": low_rank_head,
}


def tokens():
    # Enough of them for the first factors of several projections to be multiplied together.
    return torch.randint(1, 97, (9, 60), generator=torch.Generator().manual_seed(2))


def answers(model, ids):
    """Logits, gradients and generated tokens."""
    first = torch.arange(len(ids)) % 3
    task = type(model).__name__.partition("For")[2]
    labels = {
        "SequenceClassification": {"labels": first},
        "TokenClassification": {"labels": ids % 2},
        "QuestionAnswering": {"start_positions": first, "end_positions": first + 1},
    }.get(task, {"labels": ids})
    outputs = model(ids, **labels)
    found = {name: outputs[name].detach() for name in outputs if name.endswith("logits")}
    outputs.loss.backward()
    found |= {f"grad.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    if model.can_generate():
        torch.manual_seed(1)
        settings = {"do_sample": True, "max_new_tokens": 8, "pad_token_id": 0}
        found["sampled"] = model.generate(ids[:, :9], **settings)
        if model.config.model_type == "lpa":
            settings |= {"do_sample": False, "cache_implementation": "latent"}
            found["latent"] = model.generate(ids[:, :9], **settings)
    return {name: tensor.clone() for name, tensor in found.items()}


# First none is trusted. Then each answers as the package does, is saved and opened once more, with the code
# that came along.
WITHOUT_THIS_PACKAGE = f"""
import json, pathlib, sys
import torch, transformers
from safetensors.torch import load_file, save_file
{inspect.getsource(answers)}
root = pathlib.Path(sys.argv[1])
ids = load_file(root / "tokens")["ids"]
directories = sorted(path for path in root.iterdir() if path.is_dir())
refused = {{}}
for directory in [*directories, pathlib.Path(sys.argv[2])]:
    try:
        transformers.AutoModelForCausalLM.from_pretrained(directory)
    except ValueError as error:
        refused[directory.name] = str(error)
(root / "refused.json").write_text(json.dumps(refused))
for directory in directories:
    auto = getattr(transformers, (directory / "auto_class").read_text())
    model = auto.from_pretrained(directory, trust_remote_code=True).eval()
    save_file(answers(model, ids), root / f"{{directory.name}}.answers")
    model.save_pretrained(root / "again" / directory.name)
    again = auto.from_pretrained(root / "again" / directory.name, trust_remote_code=True).eval()
    assert torch.equal(again(ids)[0], model(ids)[0])
    given = {{n: t / 2 if t.is_floating_point() else t for n, t in model.state_dict().items()}}
    model.save_pretrained(root / "given" / directory.name, state_dict=dict(given))
    saved = auto.from_pretrained(root / "given" / directory.name, trust_remote_code=True)
    lost = [n for n, t in saved.state_dict().items() if not torch.equal(t, given[n])]
    assert not lost, (directory, lost)
"""


def save_without_code(model, directory):
    model.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    del config["auto_map"]
    (directory / "config.json").write_text(json.dumps(config))
    for path in directory.glob("*.py"):
        path.unlink()


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """One directory per model."""
    root = tmp_path_factory.mktemp("models")
    for name, make in MODELS.items():
        model = make()
        model.save_pretrained(root / name)
        task = type(model).__name__.partition("For")[2] or "CausalLM"  # GPT-2's is no "For"
        (root / name / "auto_class").write_text(f"AutoModelFor{task}")
    return root


@pytest.fixture(scope="module")
def opened_elsewhere(directories, without_package, tmp_path_factory):
    """The directories, with what a process without this package made of them."""
    save_file({"ids": tokens()}, directories / "tokens")
    bare = tmp_path_factory.mktemp("bare") / "without code"
    save_without_code(small_model(), bare)
    done = without_package(WITHOUT_THIS_PACKAGE, directories, bare)
    assert done.code == 0, done.stderr[-3000:]
    return directories


@pytest.mark.parametrize("name", MODELS)
def test_without_this_package_a_model_answers_as_with_it(opened_elsewhere, name):
    found = load_file(opened_elsewhere / f"{name}.answers")
    expected = answers(MODELS[name](), tokens())
    assert found.keys() == expected.keys()
    for answer, tensor in expected.items():
        assert torch.equal(found[answer], tensor), answer


def test_without_trust_the_error_says_what_to_do(opened_elsewhere):
    refused = json.loads((opened_elsewhere / "refused.json").read_text())
    # Such as an earlier release of this package, or another program, may have written.
    assert "has model type `lpa` but Transformers does not recognize" in refused.pop("without code")
    assert refused.keys() == MODELS.keys()
    for name, error in refused.items():
        if "gpt2" in name or "qwen2" in name:
            assert "pip install lpa" in error
            assert "lpa convert merge" in error
        else:  # transformers words it alone, and sends the reader to the directory
            assert "trust_remote_code=True" in error
            assert str(opened_elsewhere / name) in error


def test_with_this_package_the_code_is_not_run(directories):
    for name in ("attention", "gpt2"):
        (directories / name / "modeling_lpa.py").write_text("raise SystemExit('it ran')")
        (directories / name / "modeling_low_rank.py").write_text("raise SystemExit('it ran')")
        assert type(lpa.load(directories / name)).__module__.split(".")[0] in (
            "lpa",
            "transformers",
        )


@pytest.mark.parametrize("code", [lpa_code, low_rank_code])
def test_only_torch_transformers_and_what_they_need_are_imported(code):
    for text in code()[1].values():
        imported = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition(".")[0])
        assert imported - sys.stdlib_module_names <= {
            *("torch", "transformers"),
            *("numpy", "huggingface_hub"),  # which transformers requires
        }


@pytest.mark.parametrize(
    ("code", "old", "needed"),
    [
        (lambda: lpa_code()[1]["modeling_lpa.py"], "4.57.1", "5.13"),
        (lambda: lpa_code()[1]["configuration_lpa.py"], "5.12.1", "5.13"),
        (lambda: low_rank_code()[1]["modeling_low_rank.py"], "5.17.0", "5.18"),
    ],
)
def test_an_old_transformers_is_refused_with_what_to_do(
    tmp_path, without_package, code, old, needed
):
    (tmp_path / "old.py").write_text(code())
    script = f"import sys, transformers; transformers.__version__ = '{old}'; sys.path.append(sys.argv[1])"
    script += "; import old"
    done = without_package(script, tmp_path)
    assert f"needs transformers {needed} or later; found {old}" in done.stderr
    assert "pip install lpa" in done.stderr


def test_directories_without_code_still_load(tmp_path):
    model = small_model()
    save_without_code(model, tmp_path)
    assert torch.equal(lpa.load(tmp_path)(tokens()).logits, model(tokens()).logits)


def test_a_merged_copy_of_a_directory_with_code_has_none(directories, tmp_path):
    merged = lpa.load(directories / "gpt2").dequantize()
    merged.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert not list(tmp_path.glob("*.py"))
