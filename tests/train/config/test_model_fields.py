"""The section `model` of a recipe against the configuration of the model: field by field."""

from dataclasses import fields
from typing import get_type_hints

import pytest
from transformers import PreTrainedConfig

from lpa.model.configuration_lpa import LPAConfig
from lpa.train.config import ModelConfig, RunConfig

# A value of each that is not the preset's, beside fields that it needs.
VALUES = {
    "placement": ("all", {}),
    "rank": (5, {}),
    "ffn_rank": (7, {"placement": "all"}),
    "ranks": ({"q_proj": 9, "v_proj": [1, 2, 3, None]}, {}),
    "hidden_size": (72, {}),
    "intermediate_size": (100, {}),
    "num_hidden_layers": (3, {}),
    "num_attention_heads": (2, {}),
    "num_key_value_heads": (2, {"rank": 16}),
    "head_dim": (80, {}),
    "vocab_size": (777, {}),
    "tie_word_embeddings": (True, {}),
    "lm_head_bias": (True, {}),
    "attention_dropout": (0.25, {}),
    "resid_pdrop": (0.125, {}),
    "dense_layers": ([1], {}),
    "initializer_range": (0.03, {}),
    "initialization": ("spectral", {}),
    "residual_scaling": (True, {}),
    "low_rank_method": ("cola", {}),
    "sparse_density": (0.5, {"low_rank_method": "sltrain"}),
}
OF_THE_RECIPE_ALONE = {"preset", "from_", "attn_implementation"}
# What a recipe does not say: the preset decides it, `data` does, or it never differs.
DECIDED_ELSEWHERE = {
    "decoder_type": "preset",
    "hidden_act": "preset",
    "max_position_embeddings": "data.seq_len",
    "eos_token_id": "the manifest of the data",
    "bos_token_id": "the manifest of the data",
    "pad_token_id": "never trained on",
    "rms_norm_eps": "the published value",
    "layer_norm_eps": "the published value",
    "rope_parameters": "the published value",
    "use_cache": "generation",
    "intra_document_mask": "data.intra_document_mask",
}


def test_every_field_of_the_model_is_in_the_recipe_or_decided_elsewhere():
    of_model = {f.name for f in fields(LPAConfig)} - {f.name for f in fields(PreTrainedConfig)}
    of_recipe = {f.name for f in fields(ModelConfig)} - OF_THE_RECIPE_ALONE
    assert of_recipe == VALUES.keys()
    assert of_model == of_recipe | DECIDED_ELSEWHERE.keys()


@pytest.mark.parametrize("name", VALUES)
def test_a_field_of_the_recipe_is_that_of_the_model(name):
    value, needed = VALUES[name]
    section = needed | {name: value}
    config = RunConfig.from_dict({"data": {"path": "data"}, "model": section})
    plain = ModelConfig(**needed).build(vocab_size=97, seq_len=64)
    assert getattr(plain, name) != value, "the value must differ to show anything"
    assert getattr(config.model.build(vocab_size=97, seq_len=64), name) == value


@pytest.mark.parametrize("name", VALUES)
def test_a_field_that_is_not_given_is_the_presets(name):
    default = next(f for f in fields(ModelConfig) if f.name == name).default
    assert default == "attention" if name == "placement" else default is None
    assert name == "placement" or type(None) in get_type_hints(ModelConfig)[name].__args__


@pytest.mark.parametrize(
    ("section", "ranks"),
    [
        ({}, (128, 384)),
        ({"rank": 128}, (128, 384)),  # as the recipe of the paper says it
        ({"rank": 64}, (64, 64)),
        ({"rank": 64, "ffn_rank": 32}, (64, 32)),
        ({"ffn_rank": 32}, (128, 32)),
    ],
)
def test_another_rank_than_the_presets_is_that_of_the_ffn_too(section, ranks):
    config = ModelConfig(preset="paper-130m-s2", placement="all", **section)
    built = config.build(vocab_size=97, seq_len=64)
    assert tuple(built.projection_rank(name, 0) for name in ("q_proj", "up_proj")) == ranks
