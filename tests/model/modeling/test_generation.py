"""`generate` as people call it on any model of transformers."""

import pytest
import torch
from helpers.small_models import small_model
from transformers import DynamicCache, GenerationConfig

from lpa.model import LatentCache

LENGTHS = {"max_new_tokens": 6, "pad_token_id": 0, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 97, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(model, ids):
    return model.generate(ids, **LENGTHS)


WAYS = {
    "positional": lambda m, x, config: m.generate(x, config),
    "by name": lambda m, x, config: m.generate(input_ids=x, generation_config=config),
    "with an option more": lambda m, x, config: m.generate(x, config, min_new_tokens=6),
}


@pytest.mark.parametrize("cache", [None, "dynamic", "static", "latent"])
@pytest.mark.parametrize("way", WAYS)
def test_a_generation_config_is_followed(model, ids, expected, way, cache):
    config = GenerationConfig(**LENGTHS, cache_implementation=cache, return_dict_in_generate=True)
    found = WAYS[way](model, ids, config)
    assert torch.equal(found.sequences, expected)
    assert isinstance(found.past_key_values, LatentCache) == (cache == "latent")


def test_the_generation_config_of_the_model_is_followed_and_saved(ids, expected, tmp_path):
    model = small_model()
    model.generation_config.update(**LENGTHS, cache_implementation="latent")
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)
    found = model.generate(ids, return_dict_in_generate=True)
    assert torch.equal(found.sequences, expected)
    assert isinstance(found.past_key_values, LatentCache)


def test_a_cache_of_the_user_is_used_or_refused(model, ids, expected):
    for cache, options in (
        (DynamicCache(config=model.config), {}),
        (LatentCache(config=model.config), {}),
        (LatentCache(config=model.config), {"cache_implementation": "latent"}),
    ):
        found = model.generate(ids, past_key_values=cache, **options, **LENGTHS)
        assert torch.equal(found, expected)
        assert cache.get_seq_length() == 13
    cache = DynamicCache(config=model.config)
    with pytest.raises(ValueError, match=r"both `cache_implementation`.*`past_key_values`"):
        model.generate(ids, past_key_values=cache, cache_implementation="latent", **LENGTHS)
    assert cache.get_seq_length() == 0


def test_a_cache_that_there_is_not_is_refused(model, ids):
    with pytest.raises(ValueError, match="Invalid `cache_implementation`"):
        model.generate(ids, cache_implementation="latnet", **LENGTHS)


def test_without_a_cache_there_is_none(model, ids, expected):
    options = {"use_cache": False, "return_dict_in_generate": True}
    found = model.generate(ids, cache_implementation="latent", **LENGTHS, **options)
    assert torch.equal(found.sequences, expected)
    assert found.past_key_values is None


@pytest.mark.parametrize("cache", [None, "latent"])
@pytest.mark.parametrize("decoder_type", ["llama", "paper"])
def test_the_first_layers_draft_for_all(ids, decoder_type, cache):
    model = small_model(decoder_type=decoder_type)
    logits = model(ids).logits
    plain = model.generate(ids[:1], **LENGTHS)
    layers_run = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda layer, *_: layers_run.append(layer))
    early = model.generate(ids[:1], assistant_early_exit=1, cache_implementation=cache, **LENGTHS)
    assert torch.equal(early, plain)
    first, second = (sum(run is layer for run in layers_run) for layer in model.model.layers)
    assert first > second > 0
    assert model.config.num_hidden_layers == 2
    assert torch.equal(model(ids).logits, logits)


def test_an_error_while_the_first_layers_draft_leaves_the_model_whole(ids):
    model = small_model()
    logits = model(ids).logits
    with pytest.raises(ValueError, match=r"both `cache_implementation`.*`past_key_values`"):
        # transformers gives the drafting model a cache and the name of one.
        model.generate(ids[:1], assistant_early_exit=1, cache_implementation="dynamic", **LENGTHS)
    assert torch.equal(model(ids).logits, logits)


@pytest.mark.xdist_group("elsewhere")
def test_the_name_is_known_before_a_model_is_loaded(elsewhere):
    script = """
import lpa
from transformers import GenerationConfig
print(GenerationConfig(cache_implementation="latent").cache_implementation)
"""
    done = elsewhere(script)
    assert done.stdout.strip() == "latent", done.stderr
