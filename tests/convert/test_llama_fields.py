"""Every field of a stock Llama's configuration survives both ways, or is named here."""

from dataclasses import fields

import pytest
import torch
from helpers.small_models import small_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from lpa.convert.factorize import factorize
from lpa.convert.llama_fields import LLAMA_FIELDS
from lpa.convert.merge import merge_to_llama
from lpa.convert.to_lpa import to_lpa_config
from lpa.model.configuration_lpa import LPAConfig

# A value of each that is not the default of either configuration.
VALUES = {
    "vocab_size": 89,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "gelu",
    "max_position_embeddings": 48,
    "initializer_range": 0.03,
    "rms_norm_eps": 1e-4,
    "use_cache": False,
    "pad_token_id": 3,
    "bos_token_id": 4,
    "eos_token_id": 5,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
    "attention_dropout": 0.25,
}
# A Llama that has one of the first two is not turned into an LPA model; the third computes nothing.
LLAMA_ONLY = {"attention_bias", "mlp_bias", "pretraining_tp"}
# The method, which a merged model has none of, and what `merge` refuses or drops with its reason.
LPA_ONLY = {
    "decoder_type",
    "layer_norm_eps",
    "placement",
    "rank",
    "ffn_rank",
    "ranks",
    "dense_layers",
    "initialization",
    "residual_scaling",
    "low_rank_method",
    "sparse_density",
    "lm_head_bias",
    "resid_pdrop",
}


def own_fields(kind):
    return {field.name for field in fields(kind)} - {
        field.name for field in fields(PreTrainedConfig)
    }


def test_every_field_is_shared_or_of_one_of_both():
    assert set(LLAMA_FIELDS) == VALUES.keys()
    assert own_fields(LlamaConfig) == VALUES.keys() | LLAMA_ONLY
    assert own_fields(LPAConfig) == VALUES.keys() | LPA_ONLY | {"intra_document_mask"}


@pytest.mark.parametrize("is_set", [True, False])
def test_how_documents_are_read_survives_both_ways(is_set, tmp_path):
    model = small_model(**VALUES | {"rank": 4, "intra_document_mask": is_set})
    merged = merge_to_llama(model)
    merged.save_pretrained(tmp_path)
    stock = LlamaForCausalLM.from_pretrained(tmp_path)
    assert getattr(stock.config, "intra_document_mask", False) == is_set
    config = to_lpa_config(stock, {f"model.layers.{n}.self_attn.q_proj": 4 for n in range(3)})
    assert config.intra_document_mask == is_set


@pytest.mark.parametrize("name", LLAMA_FIELDS)
def test_a_field_survives_merging(name):
    merged = merge_to_llama(small_model(**VALUES | {"rank": 4}))
    assert _plain(getattr(merged.config, name)) == VALUES[name]


@pytest.mark.parametrize("name", LLAMA_FIELDS)
def test_a_field_survives_factorizing(name):
    dense = LlamaForCausalLM(LlamaConfig(**VALUES))
    ranks = {f"model.layers.{layer}.self_attn.q_proj": 4 for layer in range(3)}
    config = to_lpa_config(dense, ranks)
    assert config is not None
    assert _plain(getattr(config, name)) == VALUES[name]


def _plain(value):
    return dict(value) if isinstance(value, dict) else value


def test_both_ways_are_one_model():
    torch.manual_seed(0)
    dense = LlamaForCausalLM(LlamaConfig(**VALUES)).eval()
    ids = torch.randint(89, (1, 9))
    ranks = {f"model.layers.{layer}.self_attn.q_proj": 24 for layer in range(3)}
    expected = dense(ids, use_cache=False).logits
    factorized, _ = factorize(dense, ranks, "svd")
    merged = merge_to_llama(factorized)
    # A pair of full rank is the matrix to the rounding of float32.
    torch.testing.assert_close(merged(ids, use_cache=False).logits, expected, atol=1e-4, rtol=0)
