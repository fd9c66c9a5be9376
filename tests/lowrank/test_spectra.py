import math

import numpy as np
import pytest
import torch
from torch import nn

from lpa.lowrank import LowRankLinear, entropy_rank, singular_values, stable_rank


def test_the_values_of_a_pair_are_those_of_its_product():
    torch.manual_seed(0)
    pair = LowRankLinear(24, 40, 7, bias=True)
    product = pair.up.weight.detach().double().numpy() @ pair.down.weight.detach().double().numpy()
    expected = np.linalg.svd(product, compute_uv=False)[:7]
    assert singular_values(pair).numpy() == pytest.approx(expected, rel=1e-10)


def test_the_values_of_a_dense_map():
    torch.manual_seed(0)
    linear = nn.Linear(24, 40)
    expected = np.linalg.svd(linear.weight.detach().double().numpy(), compute_uv=False)
    assert singular_values(linear).numpy() == pytest.approx(expected, rel=1e-10)


def test_effective_ranks_of_known_spectra():
    equal = torch.full((5,), 3.0, dtype=torch.float64)
    assert entropy_rank(equal) == pytest.approx(5)
    assert stable_rank(equal) == pytest.approx(5)
    single = torch.tensor([2.0, 0, 0], dtype=torch.float64)
    assert entropy_rank(single) == pytest.approx(1)
    assert stable_rank(single) == pytest.approx(1)
    two = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert entropy_rank(two) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
    assert stable_rank(two) == pytest.approx(10 / 9)
    assert entropy_rank(torch.zeros(3)) == stable_rank(torch.zeros(3)) == 0
