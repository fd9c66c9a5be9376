import json
from functools import partial

import pytest
import torch
from helpers.architectures import tiny
from helpers.small_models import small_model
from transformers import AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM

import lpa
from lpa.convert.merge import merge_directory, merge_to_llama
from lpa.errors import UserError
from lpa.lowrank import LowRankLinear
from lpa.model.configuration_lpa import PLACEMENTS


@pytest.mark.parametrize(
    "fields",
    [
        *({"placement": placement} for placement in PLACEMENTS),
        {"ranks": {"v_proj": 4, "up_proj": 6}, "dense_layers": [1]},
        {"tie_word_embeddings": True},
        {"head_dim": 12},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
    ],
)
def test_the_merged_model_is_the_same_function(tmp_path, fields):
    model = small_model(num_key_value_heads=2, **fields)
    model.save_pretrained(tmp_path / "lpa")
    merge_directory(tmp_path / "lpa", tmp_path / "llama")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "llama").eval()
    tokens = torch.randint(97, (2, 24))
    torch.testing.assert_close(merged(tokens).logits, model(tokens).logits, atol=1e-4, rtol=0)
    kwargs = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(merged.generate(tokens, **kwargs), model.generate(tokens, **kwargs))


def test_half_precision_stays_half(tmp_path):
    model = small_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "lpa")
    merge_directory(tmp_path / "lpa", tmp_path / "llama")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "llama", dtype="auto")
    assert merged.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"decoder_type": "paper"}, "norms after its sublayers"),
        ({"lm_head_bias": True}, "the LM head has a bias"),
    ],
)
def test_what_llama_cannot_express_is_refused_with_the_way_out(tmp_path, fields, reason):
    small_model(**fields).save_pretrained(tmp_path / "lpa")
    with pytest.raises(UserError) as error:
        merge_directory(tmp_path / "lpa", tmp_path / "out")
    assert reason in str(error.value)
    assert "after `import lpa`" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_model_that_kept_its_class_merges_to_it(tmp_path):
    model = tiny("gpt2")
    lpa.factorize(model, "all", rank=5)
    tokens = torch.randint(97, (2, 24))
    expected = model(tokens).logits
    merged = lpa.merge(model)
    assert torch.equal(model(tokens).logits, expected)
    torch.testing.assert_close(merged(tokens).logits, expected, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path / "low-rank")
    result = lpa.merge(tmp_path / "low-rank", tmp_path / "dense")
    assert result.model_class == "GPT2LMHeadModel"
    assert result.parameters_merged == tiny("gpt2").num_parameters() > result.parameters_low_rank
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(again(tokens).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("convert", [merge_directory, partial(lpa.factorize, rank=4)])
def test_all_of_a_tokenizer_comes_along(convert, run, tmp_path):
    source = tmp_path / "source"
    model = small_model(vocab_size=300, placement="ffn")
    model.save_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "T {{ messages }}"}
    tokenizer.save_pretrained(source)
    convert(source, out=tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.chat_template == tokenizer.chat_template
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_dense_model_has_nothing_to_merge(tmp_path):
    tiny("gpt2").save_pretrained(tmp_path / "dense")
    with pytest.raises(UserError, match="is a GPT2LMHeadModel of dense projections; expected one"):
        merge_directory(tmp_path / "dense", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merging_leaves_the_model_as_it_was():
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = merge_to_llama(model)
    with torch.no_grad():  # as training the merged one would
        for parameter in merged.parameters():
            parameter.add_(1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


SCRIPT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer("My fellow", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
assert "lpa" not in sys.modules
print(type(model).__name__, output[0].tolist())
"""


@pytest.mark.xdist_group("elsewhere")
def test_a_run_merges_and_loads_where_this_package_is_not(lpa, run, elsewhere, tmp_path):
    finished = lpa("convert", "merge", run, "--out", tmp_path / "llama", "--json")
    assert finished.code == 0, finished.stderr
    figures = finished.json
    assert figures["parameters_merged"] > figures["parameters_low_rank"]
    assert json.loads((tmp_path / "llama" / "config.json").read_text())["model_type"] == "llama"
    result = elsewhere(SCRIPT, tmp_path / "llama")
    assert result.stdout.startswith("LlamaForCausalLM"), result.stderr
    from lpa.eval.loading import load_with_tokenizer

    model, tokenizer = load_with_tokenizer(run, "cpu")
    inputs = tokenizer("My fellow", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0].tolist()
    assert result.stdout.split(maxsplit=1)[1].strip() == str(expected)


@pytest.mark.parametrize("kind", ["lpa", "gpt2"])
def test_an_adapter_is_never_dropped(kind):
    pytest.importorskip("peft")
    from peft import LoraConfig

    model, target = (small_model(), "q_proj") if kind == "lpa" else (tiny("gpt2"), "c_attn")
    if kind == "gpt2":
        lpa.factorize(model, rank=5)
    config = LoraConfig(target_modules=[target], init_lora_weights=False)
    model.add_adapter(config)
    with pytest.raises(UserError, match=r"merge: .* has an adapter; .*merge_and_unload"):
        lpa.merge(model)
    pair = next(m for m in model.modules() if isinstance(m, LowRankLinear))
    with pytest.raises(UserError, match=r"expected an nn\.Linear"):
        pair.to_dense()
