"""Models of other classes with low-rank pairs: saved, refused without this package, cast, made dense."""

import copy
import json
import shutil

import pytest
import torch
from helpers.architectures import CONFIGS, tiny
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lpa
from lpa.lowrank import LowRankLinear

pytestmark = pytest.mark.filterwarnings("ignore::lpa.errors.LPAWarning")


def factorized(name):
    model = tiny(name)
    lpa.factorize(model, "all", rank=5)
    return model


def tokens():
    return torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """One directory per architecture."""
    root = tmp_path_factory.mktemp("factorized")
    for name in CONFIGS:
        factorized(name).save_pretrained(root / name)
    return root


def test_what_is_low_rank_already_is_not_factorized_again():
    model = factorized("gpt2")
    with pytest.raises(
        lpa.UserError, match="the projections of GPT2LMHeadModel are low-rank pairs"
    ):
        lpa.factorize(model, "attention", rank=2)


WITHOUT_THIS_PACKAGE = """
import json, pathlib, sys
sys.modules["lpa"] = None
import transformers
for directory in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    file = directory / "config.json"
    config = json.loads(file.read_text())
    for release in ("new", "old"):
        if release == "old":
            del config["fusion_config"]  # which older releases of transformers do not read
            file.write_text(json.dumps(config))
        for name in ("AutoModel", "AutoModelForCausalLM", *config["architectures"]):
            try:
                getattr(transformers, name).from_pretrained(directory)
                print(release, directory.name, name, "opened")
            except (ValueError, RuntimeError) as error:
                print(release, directory.name, name, error)
"""


@pytest.mark.xdist_group("elsewhere")
def test_without_this_package_it_is_refused_and_the_error_says_what_to_do(
    directories, tmp_path, elsewhere
):
    shutil.copytree(directories, tmp_path / "copy")
    done = elsewhere(WITHOUT_THIS_PACKAGE, tmp_path / "copy")
    assert done.code == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * 3 * len(CONFIGS)
    for line in lines:
        if line.startswith("new"):
            assert "pip install lpa" in line
            assert "lpa convert merge" in line
        else:  # weights of another shape
            assert "ignore_mismatched_sizes" in line


@pytest.mark.parametrize("name", CONFIGS)
def test_with_this_package_it_reloads_whole_without_a_warning(directories, name, recwarn):
    expected = factorized(name)(tokens()).logits
    for load in (lpa.load, AutoModelForCausalLM.from_pretrained):
        model = load(directories / name)
        assert torch.equal(model(tokens()).logits, expected)
    model, found = AutoModelForCausalLM.from_pretrained(
        directories / name, output_loading_info=True
    )
    assert not any(found.values())


def test_a_request_in_the_words_of_another_release_is_met(directories, tmp_path):
    directory = tmp_path / "gpt2"
    shutil.copytree(directories / "gpt2", directory)
    config = json.loads((directory / "config.json").read_text())
    config["fusion_config"] = {"low-rank pairs, as never said": True}
    (directory / "config.json").write_text(json.dumps(config))
    model = lpa.load(directory)
    assert torch.equal(model(tokens()).logits, factorized("gpt2")(tokens()).logits)


def test_saved_again_it_is_refused_as_before(directories, tmp_path):
    lpa.load(directories / "gpt2").save_pretrained(tmp_path / "gpt2")
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "gpt2" / file).read_text() == (directories / "gpt2" / file).read_text()
    first, second = (
        load_file(root / "gpt2" / "model.safetensors") for root in (directories, tmp_path)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("loaded", [False, True])
def test_weights_that_saving_is_given_are_those_that_are_saved(directories, tmp_path, loaded):
    """An average of weights, or what DeepSpeed and FSDP gather."""
    model = lpa.load(directories / "gpt2") if loaded else factorized("gpt2")
    given = {name: tensor / 2 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "named", state_dict=given)
    model.save_pretrained(tmp_path / "placed", True, given)
    for name in ("named", "placed"):
        saved = lpa.load(tmp_path / name).state_dict()
        assert saved.keys() == given.keys()
        assert all(torch.equal(saved[key], given[key]) for key in given)
    model.save_pretrained(tmp_path / "again")
    again = lpa.load(tmp_path / "again")(tokens()).logits
    assert torch.equal(again, factorized("gpt2")(tokens()).logits)


def test_the_weights_of_the_file_go_into_a_live_model(directories):
    model = factorized("gpt2")
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.up.weight.zero_()
    model.load_state_dict(load_file(directories / "gpt2" / "model.safetensors"), strict=False)
    assert torch.equal(model(tokens()).logits, factorized("gpt2")(tokens()).logits)


@pytest.mark.parametrize("loaded", [False, True])
def test_it_casts_like_any_other(directories, loaded):
    model = lpa.load(directories / "gpt2") if loaded else factorized("gpt2")
    model = copy.deepcopy(model)
    for cast, dtype in (
        ("half", torch.float16),
        ("float", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("double", torch.float64),
    ):
        assert {p.dtype for p in getattr(model, cast)().parameters()} == {dtype}
    assert model.to(torch.float32)(tokens()).logits.dtype == torch.float32


@pytest.mark.parametrize("name", CONFIGS)
def test_made_dense_it_is_the_same_function_of_the_stock_class(directories, name, tmp_path):
    model = lpa.load(directories / name)
    expected = model(tokens()).logits
    dense = model.dequantize()
    assert not any(isinstance(module, LowRankLinear) for module in dense.modules())
    torch.testing.assert_close(dense(tokens()).logits, expected, atol=1e-4, rtol=0)
    types = {n: type(m) for n, m in tiny(name).named_modules()}
    assert {n: type(m) for n, m in dense.named_modules()} == types
    dense.save_pretrained(tmp_path)
    again, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    assert not hasattr(again.config, "quantization_config")
    torch.testing.assert_close(again(tokens()).logits, expected, atol=1e-4, rtol=0)
