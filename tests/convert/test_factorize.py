import json

import pytest
import torch
from helpers.architectures import CONFIGS, tiny
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Trainer, TrainingArguments

import lpa
from lpa import load
from lpa.convert.factorize import factorize
from lpa.convert.factorize_layers import factorize_layers
from lpa.convert.merge import merge_directory
from lpa.errors import UserError
from lpa.lowrank import LowRankLinear
from lpa.model.plan import parameter_breakdown
from lpa.model.surgery.low_rank_modules import dense_weight
from lpa.model.surgery.projections import find_projections

pytestmark = pytest.mark.filterwarnings("ignore::lpa.errors.LPAWarning")
TEXT = "Low rank is what is left when the rest is thrown away, said the singular value. " * 40


def full_ranks(model):
    return {n: min(dense_weight(m).shape) for n, m in find_projections(model, "all").items()}


def windows():
    return torch.randint(300, (6, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", ["svd", "svd-llm-update"])
@pytest.mark.parametrize("name", CONFIGS)
def test_full_rank_is_exact(name, method):
    model, tokens = tiny(name), windows()
    before = model(tokens).logits
    result, figures = factorize(model, full_ranks(model), method, tokens)
    torch.testing.assert_close(result(tokens).logits, before, atol=1e-4, rtol=0)
    assert max(figures.relative_error.values()) < 1e-4
    assert (figures.model_class == "LPAForCausalLM") == (name in ("llama", "mistral"))


RELOAD = """
import sys, pathlib, torch, lpa, warnings
from transformers import AutoModelForCausalLM
for d in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    tokens = torch.load(d / "tokens.pt"); expected = torch.load(d / "logits.pt")
    for load in (lpa.load, AutoModelForCausalLM.from_pretrained):
        model = load(d).eval()
        assert torch.allclose(model(tokens).logits, expected, atol=1e-5), d
    out = model.generate(tokens[:1, :5], max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert out.shape == (1, 9), d
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        loss = model(tokens, labels=tokens).loss
        loss.backward(); optimizer.step(); optimizer.zero_grad(); losses.append(loss.item())
    assert losses[-1] < losses[0], (d, losses)
    print(d.name)
"""


def test_every_architecture_reloads_in_another_process_generates_and_trains(lpa, tmp_path):
    tokens = windows()
    models = tmp_path / "models"
    for name in CONFIGS:
        model = tiny(name)
        ranks = dict.fromkeys(find_projections(model, "all"), 5)
        result, _ = factorize(model, ranks, "svd-llm", tokens)
        result.save_pretrained(models / name)
        torch.save(tokens, models / name / "tokens.pt")
        torch.save(result(tokens).logits.detach(), models / name / "logits.pt")
    (tmp_path / "reload.py").write_text(RELOAD)
    done = lpa(models, script=tmp_path / "reload.py")
    assert done.code == 0, done.stderr[-2000:]
    assert done.stdout.split() == sorted(CONFIGS)


def test_apply_returns_what_it_replaced_and_keeps_biases():
    model = tiny("gpt2")
    bias = model.transformer.h[0].attn.c_attn.bias.detach().clone()
    replaced = lpa.factorize(model, rank=4, ranks={"c_proj": None})
    assert set(replaced) == {f"transformer.h.{i}.attn.c_attn" for i in (0, 1)}
    pair = model.transformer.h[0].attn.c_attn
    assert isinstance(pair, LowRankLinear)
    assert torch.equal(pair.up.bias, bias)


class Projections(torch.nn.Module):
    """What factorize would find in a module that is no model of transformers."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Module()])
        self.layers[0].self_attn = torch.nn.Module()
        self.layers[0].self_attn.q_proj = torch.nn.Linear(16, 16)


@pytest.mark.parametrize("model", [Projections(), 3, None], ids=lambda m: type(m).__name__)
def test_what_is_neither_a_model_nor_a_path_is_refused(model):
    for options in ({}, {"out": "never"}):
        with pytest.raises(UserError, match=rf"^model: got a {type(model).__name__}; expected "):
            lpa.factorize(model, rank=4, **options)


@pytest.mark.parametrize("fault", ["weight", "text", "saving"])
def test_a_live_model_stays_as_it_is_where_factorizing_fails(fault, source, monkeypatch):
    model = tiny("gpt2")
    options = {}
    if fault == "weight":  # of the last layer, after others would have been replaced
        with torch.no_grad():
            model.transformer.h[1].attn.c_attn.weight[0, 0] = float("nan")
    elif fault == "text":  # finite weights whose activations are not
        with torch.no_grad():
            model.transformer.h[1].ln_1.weight.fill_(1e38)
            model.transformer.h[1].ln_1.bias.fill_(3e38)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source / "gpt2")
        options = {"calibration_data": source / "text.txt", "tokenizer": tokenizer, "seq_len": 32}
        options["calibration_tokens"] = 128
    else:
        from lpa.model.surgery import factorize as live

        def fail(model, ranks):
            raise KeyboardInterrupt

        monkeypatch.setattr(live, "attach_quantization_config", fail)
    modules = dict(model.named_modules())
    config = model.config.to_dict()
    with pytest.raises((UserError, KeyboardInterrupt)):
        lpa.factorize(model, "all", rank=4, **options)
    assert dict(model.named_modules()) == modules
    assert model.config.to_dict() == config
    assert getattr(model, "hf_quantizer", None) is None


def test_fresh_pairs_have_the_deviation_of_the_dense_weights():
    model = tiny("llama")
    replaced = lpa.factorize(model, "ffn", rank=16, reinitialize=True)
    for name, dense in replaced.items():
        ratio = model.get_submodule(name).to_dense().weight.std() / dense.weight.std()
        assert 0.8 < ratio < 1.2  # of 2048 entries of rank 16


def test_whitened_beats_plain_at_the_outputs():
    errors = {}
    for method in ("svd", "svd-llm"):
        model = tiny("llama")
        errors[method] = factorize_layers(
            model, dict.fromkeys(find_projections(model, "all"), 6), method, windows()
        )
    assert all(errors["svd-llm"][k] <= errors["svd"][k] + 1e-6 for k in errors["svd"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Llama with a real tokenizer, and a text."""
    out = tmp_path_factory.mktemp("source")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT], vocab_size=300, special_tokens=["<eos>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>")
    tokenizer.chat_template = "{{ messages }}"
    tiny("llama").save_pretrained(out / "llama")
    tiny("gpt2").save_pretrained(out / "gpt2")
    for name in ("llama", "gpt2"):
        tokenizer.save_pretrained(out / name)
    (out / "text.txt").write_text(TEXT)
    return out


def test_a_budget_by_command_line_plans_and_merges(lpa, source, tmp_path):
    done = lpa(
        *(
            "convert",
            "factorize",
            source / "llama",
            "--out",
            tmp_path / "factorized",
            "--placement",
            "all",
        ),
        *("--budget", "parameters=0.5", "--calibration-data", source / "text.txt", "--seq-len", 32),
        *("--method", "svd-llm-update", "--json"),
    )
    assert done.code == 0, done.stderr
    figures = done.json
    # All of a text that is shorter than the default asks for, and the card says so.
    tokens = figures["calibration_tokens"]
    assert tokens % 32 == 0
    assert 0 < tokens < 32768
    assert f"text.txt: got {tokens:,} tokens; expected 32,768" in done.stderr
    card = (tmp_path / "factorized" / "README.md").read_text()
    assert f"svd-llm-update, with {tokens:,} tokens of text.txt" in card
    model = load(tmp_path / "factorized")
    assert model.num_parameters() == figures["parameters"] < figures["parameters_dense"]
    assert parameter_breakdown(model.config)["total"] == figures["parameters"]
    plan = lpa("plan", tmp_path / "factorized", "--seq-len", 32, "--json")
    assert plan.json["parameters"]["total"] == figures["parameters"]
    assert (tmp_path / "factorized" / "chat_template.jinja").is_file()
    merge_directory(tmp_path / "factorized", tmp_path / "merged")
    tokens = windows()
    merged = load(tmp_path / "merged")
    torch.testing.assert_close(merged(tokens).logits, model(tokens).logits, atol=1e-4, rtol=0)


def factorized_by(source, out, *flags):
    """The ranks and figures of a conversion, by the real command in this process."""
    from lpa.cli.convert.factorize import main

    main([str(source), "--out", str(out), *map(str, flags)])
    config = load(out).config
    return {
        kind: [config.projection_rank(kind, layer) for layer in range(2)]
        for kind in config.projections
    }, load(out)


def test_without_text_no_tokenizer_is_needed(source, tmp_path):
    """As of a model that PEFT has merged, which its own `save_pretrained` wrote."""
    tiny("gpt2").save_pretrained(tmp_path / "alone")
    result = lpa.factorize(tmp_path / "alone", rank=4, out=tmp_path / "out")
    assert result.calibration_tokens == 0
    assert load(tmp_path / "out").num_parameters() == result.parameters
    assert not list((tmp_path / "out").glob("*token*"))
    text = ("--rank", 4, "--calibration-data", source / "text.txt")
    assert "the directory has no tokenizer.json" in refused(tmp_path / "alone", *text)


def test_calibration_text_with_tokens_that_a_live_model_has_not_is_refused(source):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source / "gpt2")
    model = tiny("gpt2")
    model.resize_token_embeddings(200)
    options = {"calibration_data": source / "text.txt", "tokenizer": tokenizer, "seq_len": 32}
    with pytest.raises(UserError, match=r"text\.txt: the text has tokens up to id \d+; expected"):
        lpa.factorize(model, rank=4, **options)


def test_a_budget_allocated_by_loss_is_kept(source, tmp_path):
    text = ("--calibration-data", source / "text.txt", "--seq-len", 32, "--calibration-tokens", 128)
    budget = ("--budget", "parameters=0.5", "--budget-criterion", "loss")
    ranks, model = factorized_by(source / "llama", tmp_path / "factorized", *budget, *text)
    projections = find_projections(load(source / "llama"))
    dense = sum(dense_weight(module).numel() for module in projections.values())
    pairs = sum(
        parameter.numel() for name, parameter in model.named_parameters() if "self_attn" in name
    )
    # Not all of it is spent where a random model loses nothing by truncation.
    assert pairs <= 0.5 * dense
    assert len({rank for kind in ("q_proj", "o_proj") for rank in ranks[kind]}) > 1


def test_a_budget_for_the_cache_factorizes_values_alone(source, tmp_path):
    ranks, _ = factorized_by(source / "llama", tmp_path / "factorized", "--budget", "kv=0.5")
    assert sum(ranks.pop("v_proj")) == 16  # of two layers with values 16 wide
    assert all(rank is None for of_layers in ranks.values() for rank in of_layers)


def test_ranks_come_from_a_file(source, tmp_path):
    file = tmp_path / "ranks.yaml"
    file.write_text("q_proj: 5\nlayers.1.self_attn.k_proj: 3\no_proj: null\n")
    ranks, _ = factorized_by(source / "llama", tmp_path / "factorized", "--ranks", file)
    assert ranks["q_proj"] == [5, 5]
    assert ranks["k_proj"] == [None, 3]
    assert ranks["v_proj"] == ranks["o_proj"] == [None, None]


def test_the_trainer_of_transformers_trains_a_factorized_model(tmp_path):
    model = tiny("gpt2")
    lpa.factorize(model, rank=4)
    before = model.transformer.h[0].attn.c_attn.up.weight.detach().clone()
    rows = [{"input_ids": row, "labels": row} for row in windows()]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no"
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert not torch.equal(model.transformer.h[0].attn.c_attn.up.weight, before)


def broken(source, out, change):
    model = load(source)
    change(model)
    model.save_pretrained(out)
    for file in source.glob("*token*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out


def refused(source, *flags):
    """The message, by the real parser and library in this process."""
    from lpa.cli.convert.factorize import main

    out = source.parent / "never"
    with pytest.raises(UserError) as error:
        main([str(source), "--out", str(out), *map(str, flags)])
    assert not out.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_input_is_one_line_and_writes_nothing(source, tmp_path):
    llama, text = source / "llama", source / "text.txt"
    assert "from 1 to 32" in refused(llama, "--rank", 33, "--projections", "q_proj")
    assert "--projections REGEX" in refused(llama, "--rank", 4, "--projections", "nothing")
    (tmp_path / "short.txt").write_text("three words only")
    short = refused(llama, "--rank", 4, "--calibration-data", tmp_path / "short.txt")
    assert "at least one context of 64" in short
    assert "needs --calibration-data" in refused(llama, "--rank", 4, "--method", "svd-llm")
    for option in ("--calibration-tokens", "--seq-len"):
        said = f"{option}: works only with --calibration-data"
        assert refused(llama, "--rank", 4, option, 64) == said
    assert "--budget-criterion: works only with --budget" in refused(
        llama, "--rank", 4, "--budget-criterion", "spectra"
    )
    assert "exactly one of" in refused(llama, "--rank", 4, "--rank-fraction", 0.5)
    assert "at most 1" in refused(llama, "--rank-fraction", 1.5)
    assert "such as parameters=0.8" in refused(llama, "--budget", "parameters=much")
    assert "needs --calibration-data" in refused(
        llama, "--budget", "kv=0.5", "--budget-criterion", "loss"
    )
    assert "v_proj" in refused(source / "gpt2", "--budget", "kv=0.5", "--calibration-data", text)

    def poison(model):
        model.model.layers[1].self_attn.k_proj.weight.data[0, 0] = torch.nan

    nan = refused(broken(llama, tmp_path / "nan", poison), "--rank", 4)
    assert "model.layers.1.self_attn.k_proj.weight" in nan
    quantized = broken(llama, tmp_path / "int8", lambda model: None)
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    assert "bitsandbytes" in refused(quantized, "--rank", 4)


def test_modes_of_modules_decide_nothing_and_stay(source):
    """Ranks are chosen without dropout; a part that is kept in evaluation mode stays in it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source / "gpt2")
    ranks = {}
    for training in (False, True):
        torch.manual_seed(0)
        model = tiny("gpt2").train(training)
        frozen = model.transformer.h[0].mlp.eval()
        modes = {name: module.training for name, module in model.named_modules()}
        ranks[training] = {
            name: model.get_submodule(name).rank
            for name in lpa.factorize(
                model,
                budget="parameters=0.6",
                budget_criterion="loss",
                calibration_data=source / "text.txt",
                calibration_tokens=64,
                seq_len=32,
                tokenizer=tokenizer,
            )
        }
        assert not any(module.training for module in frozen.modules())
        assert {
            name: module.training for name, module in model.named_modules() if name in modes
        } == modes
        pair = model.transformer.h[1].attn.c_attn
        assert all(module.training is training for module in pair.modules())
    assert ranks[True] == ranks[False]


TEXTS = ("the end", " the end", "  two", "the</s>end of it", "a</s> the\nend")


@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizer", "LlamaTokenizerFast", None])
@pytest.mark.parametrize("legacy", [True, False])
def test_a_mistral_keeps_its_tokenizer(lpa, tokenizer_class, legacy, tmp_path):
    """transformers reads the same files as another tokenizer beside another type of model."""
    alphabet = [*"▁abcdefghijklmnopqrstuvwxyz", "▁t", "he", "▁the"]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            [("▁", "t"), ("h", "e"), ("▁t", "he")],
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    source, out = tmp_path / "source", tmp_path / "out"
    tiny("mistral").save_pretrained(source)
    backend.save(str(source / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": legacy}
    settings["chat_template"] = "{{ messages[0]['content'] }}"
    settings |= {"tokenizer_class": tokenizer_class} if tokenizer_class else {}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    done = lpa("convert", "factorize", source, "--rank", 4, "--out", out)
    assert done.code == 0
    before, after = (AutoTokenizer.from_pretrained(place) for place in (source, out))
    assert json.loads((out / "config.json").read_text())["model_type"] == "lpa"
    for text in TEXTS:
        assert after(text)["input_ids"] == before(text)["input_ids"]
        ids = before(text)["input_ids"]
        assert after.decode(ids) == before.decode(ids)
    assert after.chat_template == before.chat_template
    assert (after.eos_token, after.bos_token) == ("</s>", "<s>")
