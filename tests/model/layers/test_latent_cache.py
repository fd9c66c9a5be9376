import itertools

import pytest
import torch
from helpers.small_models import small_model

from lpa.model import LPAForCausalLM, preset_config
from lpa.model.layers.latent_cache import LatentCache
from lpa.model.plan import plan_model

KINDS = [
    {"decoder_type": "llama"},
    {"decoder_type": "paper"},
    {"decoder_type": "llama", "num_key_value_heads": 2},
    {"decoder_type": "paper", "num_key_value_heads": 2},
    {"decoder_type": "paper", "ranks": {"k_proj": None, "v_proj": 4}},
    {"decoder_type": "paper", "ranks": {"v_proj": None, "k_proj": 6}},
    {"decoder_type": "llama", "dense_layers": [0]},
]


@pytest.fixture
def tokens():
    return torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))


def greedy(model, tokens, **options):
    return model.generate(tokens, max_new_tokens=24, do_sample=False, pad_token_id=0, **options)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_logits_equal_those_of_the_plain_cache(kind, tokens):
    """Prompt, one token, and several at once: each takes another way through the attention."""
    model = small_model(**kind)
    cache = LatentCache(config=model.config)
    whole = model(tokens).logits
    places = [0, 5, 6, 9, 12]
    parts = [
        model(tokens[:, a:b], past_key_values=cache).logits for a, b in itertools.pairwise(places)
    ]
    # float32 products in another order
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_generates_what_the_plain_cache_does(kind, implementation, tokens):
    model = small_model(**kind)
    model.set_attn_implementation(implementation)
    plain = greedy(model, tokens)
    assert torch.equal(greedy(model, tokens, cache_implementation="latent"), plain)
    cache = LatentCache(config=model.config)
    assert torch.equal(greedy(model, tokens, past_key_values=cache), plain)
    assert cache.get_seq_length() == plain.shape[1] - 1


@pytest.mark.parametrize("kind", KINDS[:4], ids=str)
def test_left_padding_and_beam_search(kind, tokens):
    model = small_model(**kind)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    options = {"attention_mask": mask, "num_beams": 3}
    plain = greedy(model, tokens, **options)
    assert torch.equal(greedy(model, tokens, cache_implementation="latent", **options), plain)


def test_other_cache_implementations_still_mean_what_they_did(tokens):
    model = small_model()
    assert torch.equal(greedy(model, tokens, cache_implementation="static"), greedy(model, tokens))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_holds_the_bytes_that_a_plan_predicts(kind, tokens):
    model = small_model(**kind)
    cache = LatentCache(config=model.config)
    model(tokens, past_key_values=cache)
    plan = plan_model(model.config, seq_len=12).kv_cache_bytes_per_token
    assert cache.nbytes() == plan["latent"] * tokens.numel()
    plain = model(tokens, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in plain.layers)
    assert held == plan["plain"] * tokens.numel()


@pytest.mark.parametrize(("preset", "share"), [("130m-s1", 0.17), ("paper-130m-s2", 0.59)])
def test_a_sixth_of_the_width_as_rank_saves_so_much(preset, share):
    plan = plan_model(preset_config(preset, rank=128), seq_len=256).kv_cache_bytes_per_token
    assert plan["latent"] / plan["plain"] <= share


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_cropped_and_reset_caches_continue(kind, tokens):
    model = small_model(**kind)
    cache = LatentCache(config=model.config)
    model(tokens, past_key_values=cache)
    cache.crop(-4)
    again = model(tokens[:, 8:], past_key_values=cache).logits
    whole = model(tokens).logits
    torch.testing.assert_close(again, whole[:, 8:], atol=2e-5, rtol=1e-4)
    cache.reset()
    assert cache.get_seq_length() == 0
    fresh = model(tokens, past_key_values=cache).logits
    torch.testing.assert_close(fresh, whole, atol=2e-5, rtol=1e-4)


def test_a_hook_on_a_second_factor_is_called(tokens):
    model: LPAForCausalLM = small_model()
    up = model.model.layers[0].self_attn.v_proj.up
    before = greedy(model, tokens, cache_implementation="latent")
    handle = up.register_forward_hook(lambda module, inputs, output: output * -3)
    changed = greedy(model, tokens, cache_implementation="latent")
    assert not torch.equal(changed, before)
    assert torch.equal(changed, greedy(model, tokens))
    handle.remove()
    assert torch.equal(greedy(model, tokens, cache_implementation="latent"), before)
