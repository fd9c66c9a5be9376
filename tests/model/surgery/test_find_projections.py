"""Which projections a placement selects, in classes that name them in other ways."""

import warnings

import pytest
import torch
import transformers as hf
from helpers.architectures import tiny

import lpa
from lpa.convert.factorize import factorize
from lpa.errors import LPAWarning, UserError
from lpa.lowrank import LowRankLinear
from lpa.model.surgery.projections import find_projections

GPT = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SHARED = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 32, "num_experts": 4}
NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
# How many projections of a layer each placement has.
SELECTED = {
    "gptj": (hf.GPTJConfig(**GPT, rotary_dim=4, bos_token_id=0, eos_token_id=0), 4, 2),
    "gpt_neo": (
        hf.GPTNeoConfig(vocab_size=300, hidden_size=32, **NEO, bos_token_id=0, eos_token_id=0),
        *(4, 2),
    ),
    "mpt": (hf.MptConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=4), 2, 2),
    "lfm2": (hf.Lfm2Config(**LLAMA, layer_types=["full_attention"] * 2), 4, 3),
    "qwen2_moe": (hf.Qwen2MoeConfig(**LLAMA, **SHARED), 4, 3),
}


def model_of(config):
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config).eval()


def tokens():
    return torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(2))


@pytest.mark.filterwarnings("ignore::lpa.errors.LPAWarning")
@pytest.mark.parametrize("name", SELECTED)
def test_a_placement_finds_the_projections_under_their_other_names(name, tmp_path):
    config, attention, ffn = SELECTED[name]
    model = model_of(config)
    assert len(find_projections(model, "attention")) == 2 * attention
    assert len(find_projections(model, "ffn")) == 2 * ffn
    replaced = lpa.factorize(model, "all", rank=4)
    assert len(replaced) == 2 * (attention + ffn)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(lpa.load(tmp_path)(tokens()).logits, model(tokens()).logits)


def test_a_kind_without_a_projection_is_refused():
    """The experts of a Mixtral are fused, so that its FFN would stay dense without a word."""
    model = model_of(hf.MixtralConfig(**LLAMA, num_local_experts=4))
    with pytest.raises(UserError, match=r"MixtralForCausalLM has no projection that .*down_proj"):
        lpa.factorize(model, "all", rank=4)
    assert len(find_projections(model, "attention")) == 8


def test_a_kind_that_is_low_rank_already_is_not_missed():
    model = tiny("gpt2")
    lpa.factorize(model, "attention", rank=4)
    assert all(".mlp." in name for name in find_projections(model, "all"))


def test_fused_experts_that_stay_dense_are_named():
    model = model_of(SELECTED["qwen2_moe"][0])
    with pytest.warns(LPAWarning, match=r"keeps its experts dense: .*experts\.down_proj"):
        find_projections(model, "all")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_projections(model, "attention")


def test_attention_over_latents_is_refused():
    sizes = LLAMA | {"num_key_value_heads": 4}
    config = hf.DeepseekV3Config(**sizes, **LATENT, v_head_dim=8, first_k_dense_replace=2)
    model = model_of(config)
    for placement in ("attention", "all"):
        with pytest.raises(UserError, match=r"low rank already.*--projections REGEX.*kv_b_proj"):
            lpa.factorize(model, placement, rank=4)
    assert len(find_projections(model, "ffn")) == 6
    assert find_projections(model, projections="q_b_proj")


def test_a_placement_keeps_to_the_decoder_of_a_model_that_sees_images(tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = hf.Gemma3Config(
        text_config=LLAMA | {"head_dim": 8, "sliding_window": 8},
        vision_config=vision,
        mm_tokens_per_image=4,
    )
    model = model_of(config)
    found = find_projections(model, "all")
    assert len(found) == 2 * 7
    assert not any("vision" in name for name in found)
    assert find_projections(model, projections="vision.*q_proj")
    factorized, _ = factorize(model, dict.fromkeys(found, 4), "svd-llm", tokens())
    pairs = {n for n, m in factorized.named_modules() if isinstance(m, LowRankLinear)}
    assert pairs == found.keys()
    factorized.save_pretrained(tmp_path)
    expected = factorized(tokens()).logits
    torch.testing.assert_close(lpa.load(tmp_path)(tokens()).logits, expected)


@pytest.mark.parametrize("options", [{"rank": 4}, {"budget": "parameters=0.5"}], ids=str)
def test_a_head_that_is_tied_to_the_embedding_is_refused(options, tmp_path):
    """It would be saved as a pair, and the embedding would have nothing to be tied to."""
    model = tiny("gpt2")
    model.save_pretrained(tmp_path / "dense")
    modules = dict(model.named_modules())
    message = r"^--projections: got lm_head, which is tied to the embedding of GPT2LMHeadModel; "
    for source, out in ((model, None), (tmp_path / "dense", tmp_path / "never")):
        with pytest.raises(UserError, match=message):
            lpa.factorize(source, projections=r"c_attn|lm_head", out=out, **options)
    assert dict(model.named_modules()) == modules
    assert not (tmp_path / "never").exists()
    lpa.factorize(model, projections=r"c_attn|lm_head", ranks={"c_attn": 4})
    model.save_pretrained(tmp_path / "pairs")
    assert torch.equal(lpa.load(tmp_path / "pairs")(tokens()).logits, model(tokens()).logits)


def test_a_head_with_weights_that_are_not_the_embedding_becomes_a_pair(tmp_path):
    model = tiny("llama")
    lpa.factorize(model, projections="lm_head", rank=4)
    model.save_pretrained(tmp_path)
    assert torch.equal(lpa.load(tmp_path)(tokens()).logits, model(tokens()).logits)
