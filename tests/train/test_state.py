"""Which evaluation is the best of a run."""

import math

import pytest

from lpa.train.state import TrainState


@pytest.mark.parametrize(
    ("best", "loss", "expected"),
    [
        (None, 3.0, True),
        (3.0, 2.0, True),
        (3.0, 3.0, False),
        (3.0, 4.0, False),
        (None, math.nan, False),
        (3.0, math.nan, False),
        (math.nan, 3.0, True),  # of an earlier version
        (math.inf, 3.0, True),
    ],
)
def test_the_lowest_number_is_the_best(best, loss, expected):
    state = TrainState(best_loss=best, best_eval_tokens=64)
    assert state.is_best(loss, 64, 64) is expected


def test_losses_of_different_parts_are_not_compared():
    state = TrainState(best_loss=3.0, best_eval_tokens=64)
    assert not state.is_best(2.0, 0, 64)  # the whole split, at the end
    assert state.is_best(4.0, 32, 32)  # the recipe asks for another part now
