import math

import numpy as np
import pytest
import torch
from helpers.small_models import small_model

from lpa.eval.analysis.attention_heads import _sums, head_stats


def test_known_attention_maps():
    length = 5
    itself = torch.eye(length, dtype=torch.float64)
    alike = torch.tril(torch.ones(length, length, dtype=torch.float64))
    alike /= alike.sum(-1, keepdim=True)
    first = torch.zeros(length, length, dtype=torch.float64)
    first[:, 0] = 1
    found = _sums(torch.stack([itself, alike, first]))
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
