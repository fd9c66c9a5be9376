import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.damaged_models import MARK, edit_json, foreign_code
from helpers.small_models import small_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

import lpa
from lpa.errors import LPAWarning, UserError
from lpa.eval.loading import load_with_tokenizer
from lpa.lowrank import LowRankLinear
from lpa.model.loading import (
    load_model,
    model_directory,
    new_model,
    open_causal_config,
    open_config,
)
from lpa.model.weight_checks import limit_model_size

sys.path.append(str(Path(__file__).parents[1] / "convert"))
from helpers.architectures import CONFIGS, tiny

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IDS = torch.arange(12)[None]


def same_logits(one, other) -> bool:
    with torch.no_grad():
        return torch.equal(one.eval()(IDS).logits, other.eval()(IDS).logits)


def change_weights(directory: Path, change) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def test_a_run_means_its_final_model(run):
    assert model_directory(run) == run / "final"
    assert model_directory(run / "final") == run / "final"


def test_what_holds_no_model_is_refused(tmp_path, run):
    with pytest.raises(UserError, match="gone: no such directory"):
        model_directory(tmp_path / "gone")
    with pytest.raises(UserError, match=r"has no config\.json"):
        model_directory(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json makes it an adapter of peft"):
        model_directory(tmp_path)
    shutil.copy(run / "config.yaml", tmp_path)
    with pytest.raises(UserError, match="a run that has not finished"):
        model_directory(tmp_path)


def test_damaged_weights_are_refused(tmp_path, run):
    shutil.copytree(run / "final", tmp_path / "final")
    weights = tmp_path / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"final: model\.safetensors is damaged"):
        load_with_tokenizer(tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_opens_whole_and_in_shards(name, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for directory in ("one", "shards"):
        assert same_logits(lpa.load(tmp_path / directory), model)


@pytest.fixture
def roberta(tmp_path) -> Path:
    torch.manual_seed(0)
    RobertaForMaskedLM(RobertaConfig(**SIZES)).save_pretrained(tmp_path)
    return tmp_path


def test_an_encoder_is_no_causal_language_model(roberta):
    message = (
        r"config\.json: is_decoder: got false; expected true, as roberta otherwise attends to later"
    )
    with pytest.raises(UserError, match=message):
        lpa.load(roberta)
    assert type(load_model(roberta, classify=True)).__name__ == "RobertaForSequenceClassification"


def test_an_encoder_that_is_made_a_decoder_opens(roberta):
    edit_json(roberta / "config.json", {"is_decoder": True})
    model, other = lpa.load(roberta), IDS.clone()
    other[0, -1] = 50
    with torch.no_grad():
        assert torch.equal(model(IDS).logits[:, :-1], model(other).logits[:, :-1])


ENCODERS = {
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"),
    *("megatron-bert", "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert"),
    *("roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}


def test_of_all_causal_classes_only_those_of_encoders_are_refused(tmp_path):
    refused = set()
    for config_class in AutoModelForCausalLM._model_mapping:
        kind = config_class.model_type
        if kind == "gemma4_assistant":  # has no default configuration
            continue
        config_class().save_pretrained(tmp_path)
        try:
            open_causal_config(tmp_path)
        except UserError as error:
            assert "expected true" in str(error)  # noqa: PT017
            refused.add(kind)
    assert refused == ENCODERS


def test_a_model_saved_without_its_tied_head(tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    model.model.save_pretrained(tmp_path)
    assert "embed_tokens.weight" in load_file(tmp_path / "model.safetensors")
    assert same_logits(lpa.load(tmp_path), model)


def test_a_head_that_is_missing_is_not_drawn(llama, tmp_path):
    LlamaModel.save_pretrained(llama.model, tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors has no lm_head\.weight$"):
        lpa.load(tmp_path)


def test_code_beside_a_known_class_is_left_alone(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    foreign_code(tmp_path)
    code = {"AutoConfig": "configuration_evil.A", "AutoModelForCausalLM": "modeling_evil.B"}
    edit_json(tmp_path / "config.json", {"auto_map": code})
    model = lpa.load(tmp_path)
    model.generate(IDS, max_new_tokens=1)
    assert same_logits(model, llama)
    assert not (tmp_path / MARK).exists()


def test_code_cannot_be_asked_for(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    with pytest.raises((UserError, TypeError), match="trust_remote_code"):
        lpa.load(tmp_path, trust_remote_code=True)


def test_tensors_of_another_head_are_warned_of(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    change_weights(tmp_path, lambda t: t.update({"v_head.summary.weight": torch.zeros(1, 32)}))
    with pytest.warns(LPAWarning, match=r"has v_head\.summary\.weight, which Llama.* does without"):
        model = lpa.load(tmp_path)
    assert same_logits(model, llama)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.bias", (32,)),
        ("model.layers.7.mlp.up_proj.weight", (64, 32)),
        ("layers.0.mlp.up_proj.bias", (64,)),
    ],
)
def test_tensors_that_the_configuration_leaves_out_are_refused(llama, tmp_path, name, shape):
    llama.save_pretrained(tmp_path)
    change_weights(tmp_path, lambda t: t.update({name: torch.zeros(shape)}))
    with pytest.raises(UserError, match=r"has .*(bias|layers\.7).*which the model of config\.json"):
        lpa.load(tmp_path)


def test_masks_that_older_files_have_are_no_weights(tmp_path):
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
    change_weights(tmp_path, lambda t: t.update({"transformer.h.0.attn.bias": mask}))
    assert same_logits(lpa.load(tmp_path), model)


@pytest.fixture
def factorized(tmp_path) -> Path:
    """A model that keeps its own class, with pairs inside."""
    model = tiny("gpt2")
    lpa.factorize(model, rank=4)
    model.save_pretrained(tmp_path)
    return tmp_path


def test_pairs_are_never_drawn(factorized):
    """As where nothing puts pairs in the place of the projections before weights are loaded."""
    edit_json(factorized / "config.json", {"quantization_config": ..., "fusion_config": ...})
    with pytest.raises(UserError, match=r"model\.safetensors has no transformer\.h\.0\.attn\.c_"):
        lpa.load(factorized)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (None, r"quantization_config\.ranks: got None; expected the rank of each projection"),
        ([], r"quantization_config\.ranks: got \[\]"),
        ({}, r"quantization_config\.ranks: got {}"),
        ({"transformer.h.0.attn.c_attn": 0}, r"ranks\.transformer\S+: got 0; expected an integer"),
        ({"transformer.h.0.attn.c_attn": "4"}, r"ranks\.transformer\S+: got '4'; expected an int"),
        ({"transformer.h.0.attn.c_attn": 10**12}, r"ranks\.transformer\S+: got 1000000000000"),
        ({"transformer.h.0.ln_1": 4}, r"GPT2LMHeadModel has no projection transformer\.h\.0\.ln_1"),
        ({"transformer.h.9.attn.c_attn": 4}, r"has no projection transformer\.h\.9\.attn\.c_attn"),
        ({"transformer.h.0.attn.c_attn": 4}, r"model\.safetensors has no transformer\.h\.0\.attn"),
        ({"transformer.h.0.attn.c_attn": 3}, r"model\.safetensors has "),
    ],
)
def test_pairs_that_the_weights_do_not_have(factorized, ranks, message):
    edit_json(
        factorized / "config.json",
        {"quantization_config": {"quant_method": "low_rank", "ranks": ranks}},
    )
    with pytest.raises(UserError, match=message) as error:
        lpa.load(factorized)
    assert str(factorized) in str(error.value)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("classify", [False, True])
def test_a_new_model_has_pairs_where_the_saved_one_has(name, classify, tmp_path):
    model = tiny(name)
    lpa.factorize(model, "all", rank=4)
    model.save_pretrained(tmp_path)
    saved = load_model(tmp_path, classify=classify, dtype="float32")
    torch.manual_seed(3)
    new = new_model(tmp_path, open_config(tmp_path), classify=classify)
    pairs = {n: m for n, m in new.named_modules() if isinstance(m, LowRankLinear)}
    assert len(pairs) == len([m for m in saved.modules() if isinstance(m, LowRankLinear)]) > 0
    theirs = dict(saved.named_parameters())
    assert {n: p.shape for n, p in new.named_parameters()} == {
        n: p.shape for n, p in theirs.items()
    }
    torch.manual_seed(3)
    dense = dict(type(new)(tiny(name).config).named_parameters())
    for path, pair in pairs.items():
        assert not torch.equal(pair.down.weight, theirs[f"{path}.down.weight"])
        # As large as the dense projection would be: GPT-2 draws some smaller than others.
        expected = dense[f"{path}.weight"].std().item()
        assert pair.to_dense().weight.std().item() == pytest.approx(expected, rel=0.3)
        if pair.up.bias is not None:
            assert torch.equal(pair.up.bias, dense[f"{path}.bias"])


def test_a_new_model_is_not_drawn_where_the_weights_are_quantized(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    edit_json(tmp_path / "config.json", quantized)
    message = (
        r"config\.json: quantization_config\.quant_method: got 'gptq'; expected low_rank or no"
    )
    with pytest.raises(UserError, match=message):
        new_model(tmp_path, open_config(tmp_path), classify=True)


def test_a_limit_of_size_ends_with_its_block(llama):
    with (
        pytest.raises(
            UserError, match=r"^this describes a model of over 3,072 parameters, far more than"
        ),
        limit_model_size(3000, 100, "this", "the test holds"),
    ):
        LlamaForCausalLM(LlamaConfig(**SIZES))
    LlamaForCausalLM(LlamaConfig(**SIZES))
    with limit_model_size(10**6, 100, "this", "the test holds"):
        GPT2LMHeadModel(CONFIGS["gpt2"]())


def test_no_question_is_asked_of_a_directory_with_code(tmp_path):
    """Not even where there is somebody to answer."""
    from transformers import AutoModelForCausalLM

    foreign_code(tmp_path)
    fields = {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.A"}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"needs Python code from the directory \(auto_map\)"):
        lpa.load(tmp_path)
    assert not (tmp_path / MARK).exists()
    # The fixture is what it is taken for: with trust its code runs.
    with pytest.raises(Exception, match="configuration_evil"):
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert (tmp_path / MARK).exists()


def test_nothing_in_the_package_opens_files_in_another_way():
    """No unpickling, and nothing of transformers without a word on code from the directory."""
    source = Path(lpa.__file__).parent
    openers = {}
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in ("torch.load", "pickle.load", "pickle.loads"), path
            # A plain name is the function of data/tokenizer.py, which calls transformers' there.
            if name.endswith((".from_pretrained", ".from_config")):
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                place = str(path.relative_to(source))
                openers.setdefault(place, []).append(said.get("trust_remote_code"))
    assert openers.pop("gguf_import.py") == ["False", "False"]
    # Runs from within a model directory, where this package is missing and the caller trusts the directory.
    openers.pop("model/surgery/remote_loading.py")
    assert openers.keys() == {"data/tokenizer.py", "model/loading.py"}
    assert {said for place in openers.values() for said in place} == {"False"}


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        UserError, match=r"model\.gguf: is a file; expected a run .* of a GGUF file"
    ):
        lpa.load(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-135M"])
def test_a_name_of_the_hub_says_how_to_fetch_it(name):
    with pytest.raises(UserError, match=f"no such directory; .*: hf download {name} --local-dir"):
        lpa.load(name)


@pytest.mark.parametrize("name", ["runs/lpa", "/nowhere/lpa", "a/b/c"])
def test_other_names_are_none_of_the_hub(name):
    with pytest.raises(UserError, match="no such directory") as refused:
        lpa.load(name)
    assert "hf download" not in str(refused.value)


def test_the_dtype_is_taken_by_both_its_names(tmp_path):
    small_model().save_pretrained(tmp_path)
    for name in ("dtype", "torch_dtype"):
        for value in ("bfloat16", torch.bfloat16):
            assert lpa.load(tmp_path, **{name: value}).dtype == torch.bfloat16
    assert lpa.load(tmp_path).dtype == torch.float32
