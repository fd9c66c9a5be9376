import math

import numpy as np
import pytest
import torch
from helpers.small_models import small_model
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from lpa.errors import LPAWarning
from lpa.eval.analysis.attention_heads import _sums, head_stats


def test_known_attention_maps():
    length = 5
    itself = torch.eye(length, dtype=torch.float64)
    alike = torch.tril(torch.ones(length, length, dtype=torch.float64))
    alike /= alike.sum(-1, keepdim=True)
    first = torch.zeros(length, length, dtype=torch.float64)
    first[:, 0] = 1
    sums = _sums(torch.stack([itself, alike, first]))
    assert sums[:, 3].tolist() == [length - 1] * 3
    found = sums[:, :3] / sums[:, 3:]
    mean_log = sum(math.log(t + 1) for t in range(1, length)) / (length - 1)
    mean_place = sum(range(1, length)) / (length - 1)
    assert found.tolist() == [
        pytest.approx([0, 0, 0]),
        pytest.approx([mean_log, 1, mean_place / 2]),
        pytest.approx([0, 0, mean_place]),
    ]


def test_every_head_of_a_model_over_whole_windows():
    model = small_model(placement="attention", attn_implementation="eager")
    tokens = np.random.default_rng(0).integers(0, 97, 70)
    found = head_stats(model, tokens, seq_len=32)
    assert [(head.layer, head.head) for head in found] == [(i, j) for i in (0, 1) for j in range(4)]
    assert all(0 < head.relative_entropy < 1 for head in found)
    with torch.no_grad():
        maps = model(torch.from_numpy(tokens[:64]).view(2, 32), output_attentions=True).attentions
    weights = maps[1][:, 2].double()
    back = (torch.arange(32)[:, None] - torch.arange(32)).clamp(min=0)
    expected = (weights * back).sum(-1)[:, 1:].mean()
    assert found[6].distance == pytest.approx(expected.item(), rel=1e-5)


SIZES = {
    **{"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager"},
}


def make_attention_uniform(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".q_proj." in name:
                parameter.zero_()
    return model.eval()


def test_a_window_limits_what_a_head_can_see():
    config = MistralConfig(**SIZES, num_hidden_layers=2, sliding_window=4)
    model = make_attention_uniform(MistralForCausalLM(config))
    for head in head_stats(model, np.arange(64) % 97, seq_len=32):
        assert head.relative_entropy == pytest.approx(1)
        assert head.distance < 1.5
        assert head.entropy <= math.log(4)


def test_documents_are_kept_apart_where_the_model_was_trained_so():
    tokens = np.tile([5, 6, 7, 0], 16)
    found = {}
    for apart in (True, False):
        model = small_model(
            placement="attention", attn_implementation="eager", intra_document_mask=apart
        )
        make_attention_uniform(model)
        found[apart] = head_stats(model, tokens, seq_len=32, eos_token_id=0)
    assert all(head.distance == pytest.approx(1) for head in found[True])  # of 2, 3 and 4 tokens
    assert all(head.distance > 5 for head in found[False])
    for head in (*found[True], *found[False]):
        assert head.relative_entropy == pytest.approx(1)


def test_heads_have_the_numbers_of_their_layers():
    kinds = ["conv", "conv", "full_attention", "conv"]
    config = Lfm2Config(**SIZES, num_hidden_layers=4, layer_types=kinds)
    found = head_stats(Lfm2ForCausalLM(config).eval(), np.arange(40) % 97, seq_len=32)
    assert [(head.layer, head.head) for head in found] == [(2, 0), (2, 1), (2, 2), (2, 3)]


def test_a_model_without_attention_has_no_heads():
    config = MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.warns(LPAWarning, match="MambaForCausalLM: does not show its attention"):
        assert head_stats(MambaForCausalLM(config).eval(), np.arange(40) % 97, seq_len=32) is None
