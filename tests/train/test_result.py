import math
from dataclasses import replace
from pathlib import Path

import pytest

from lpa.scoring.perplexity import Perplexity, ValidationPerplexity
from lpa.train.result import RunResult, format_summary
from lpa.train.state import TrainState

RESULT = RunResult(
    steps=31800,
    tokens=4_168_089_600,
    parameters=115_263_488,
    train_flops_per_token=700_000_000,
    tokens_per_second=400_000.0,
    train_seconds=10_420.0,
    wall_seconds=11_000.0,
    peak_memory_bytes=3 * 2**29,
    validation=Perplexity.from_total_nll(300.0, tokens=100, words=0, bytes=0),
)


def test_a_run_in_one_line():
    assert format_summary(RESULT, Path("runs/lpa")) == (
        "runs/lpa: 31,800 steps, 4.17B tokens, validation perplexity 20.09, "
        "400,000 tokens/s, 280 TFLOP/s, peak memory 1.50 GiB, 3 h 03 min"
    )


def test_mfu_where_the_peak_is_known_and_no_perplexity_without_validation():
    line = format_summary(replace(RESULT, peak_flops=989.4e12, validation=None), Path("run"))
    assert "MFU 28.3%" in line  # 280 / 989.4
    assert "FLOP/s" not in line
    assert "perplexity" not in line


def test_a_result_is_read_back(tmp_path):
    result = replace(
        RESULT,
        peak_flops=1e12,
        validation=ValidationPerplexity(1, 3.0, 20.0, 4.4, 1.4, 0.1),
    )
    result.save(tmp_path)
    assert RunResult.load(tmp_path) == result


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
