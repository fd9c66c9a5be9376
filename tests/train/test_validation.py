import math

import numpy as np
import pytest
import torch

from lpa.eval.bootstrap import bootstrap
from lpa.scoring.perplexity import ValidationPerplexity
from lpa.train.validation import batches_of_rank, sums_of_parts


def batches(count):
    for number in range(count):
        yield {"input_ids": torch.full((1, 2), number), "shift_labels": torch.zeros(1, 2)}


def test_ranks_share_batches_and_make_as_many_forward_passes():
    of_rank = [list(batches_of_rank(batches(5), rank, 3)) for rank in range(3)]
    assert [len(found) for found in of_rank] == [2, 2, 2]
    counted = [
        int(batch["input_ids"][0, 0])
        for found in of_rank
        for batch in found
        if (batch["shift_labels"] >= 0).all()
    ]
    assert sorted(counted) == [0, 1, 2, 3, 4]


def perplexity_of(tokens, nlls, ranks=1):
    """Of parts that so many processes score in turns."""
    sums = sum(
        sums_of_parts(
            torch.tensor(tokens[rank::ranks]), torch.tensor(nlls[rank::ranks], dtype=torch.float64)
        )
        for rank in range(ranks)
    )
    return ValidationPerplexity.from_sums(sums.tolist(), words=0, bytes=0)


def test_the_standard_error_is_that_of_the_mean_of_equal_parts():
    nlls = (np.random.default_rng(0).normal(2.0, 0.1, 50) * 64).tolist()
    result = perplexity_of([64] * 50, nlls)
    of_mean = np.std(nlls, ddof=1) / 64 / math.sqrt(50)
    assert result.tokens == 3200
    assert result.perplexity == pytest.approx(math.exp(sum(nlls) / 3200))
    assert result.standard_error == pytest.approx(of_mean * result.perplexity)


def test_the_standard_error_is_that_of_a_bootstrap_over_unequal_parts():
    random = np.random.default_rng(1)
    tokens = random.integers(1, 64, 200)
    nlls = tokens * random.normal(2.0, 0.1, 200)
    drawn, _ = bootstrap(lambda loss, count: np.exp(loss / count), nlls, tokens)
    result = perplexity_of(tokens.tolist(), nlls.tolist())
    assert result.standard_error == pytest.approx(drawn, rel=0.1)  # of 1000 draws


def test_processes_and_parts_without_targets_change_nothing():
    tokens, nlls = [8, 8, 5, 0], [16.0, 17.0, 9.0, 0.0]
    assert perplexity_of(tokens, nlls, ranks=2) == perplexity_of(tokens[:3], nlls[:3])


def test_one_part_has_no_standard_error():
    assert math.isnan(perplexity_of([8], [16.0]).standard_error)
