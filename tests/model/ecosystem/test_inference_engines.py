"""What the transformers backends of vLLM and SGLang ask of a model, without either of them.

By transformers' guide "Building a compatible model backend for inference" and vLLM's "Writing custom models":
an engine builds the model from its `auto_map`, puts its own attention in place of transformers', passes what
that needs through `forward`, and splits layers by the plans of the configuration.
"""

import json

import pytest
import torch
from helpers.small_models import small_model
from transformers import AttentionInterface, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lpa.model import LPAConfig

MODELS = {
    "dense": {"placement": "none"},
    "attention": {},
    "all": {"placement": "all", "num_key_value_heads": 2},
    "cola": {"low_rank_method": "cola", "placement": "all"},
    "tied": {"tie_word_embeddings": True},
}

# Those that vLLM sizes its cache and its heads by.
FIELDS = [
    *("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("num_hidden_layers", "max_position_embeddings", "tie_word_embeddings", "architectures"),
]


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_the_configuration_says_what_an_engine_reads(tmp_path, fields):
    small_model(**fields).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for field in FIELDS:
        assert config[field] is not None, field
    for auto in ("AutoConfig", "AutoModel", "AutoModelForCausalLM"):
        module, name = config["auto_map"][auto].split(".")
        assert f"class {name}" in (tmp_path / f"{module}.py").read_text()


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_layers_are_split_in_the_two_ways_that_engines_know(fields):
    config = small_model(**fields).config
    assert set(config.base_model_tp_plan.values()) <= {"colwise", "rowwise"}
    children = dict(AutoModel.from_config(config).named_children())
    assert set(config.base_model_pp_plan) <= set(children)
    assert list(config.base_model_pp_plan) == ["embed_tokens", "layers", "norm"]


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_attention_of_an_engine_takes_the_place_of_ours(fields):
    """It is called once per layer with what the engine passed to the model, and nothing is kept between."""
    model = small_model(**fields)
    assert model._supports_attention_backend
    tokens = torch.randint(97, (1, 20), generator=torch.Generator().manual_seed(0))
    expected = model(tokens).logits
    calls = []

    def engine(module, query, key, value, mask, scaling=None, instances=None, **_):
        instances[module.layer_idx].append(query.shape)
        calls.append((module.is_causal, scaling, key.shape))
        # An engine knows the mask from its own bookkeeping.
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)

    AttentionInterface.register("engine", engine)
    model.set_attn_implementation("engine")
    instances = {layer: [] for layer in range(model.config.num_hidden_layers)}
    positions = torch.arange(20)[None]
    for _ in range(2):
        found = model(tokens, position_ids=positions, use_cache=False, instances=instances)
        assert found.past_key_values is None
        torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4)
    config: LPAConfig = model.config
    shape = (1, config.num_attention_heads, 20, config.head_dim)
    assert all(shapes == [shape, shape] for shapes in instances.values())
    kv_shape = (1, config.num_key_value_heads, 20, config.head_dim)
    assert set(calls) == {(True, config.head_dim**-0.5, kv_shape)}
