from dataclasses import replace
from pathlib import Path

from lpa.scoring.perplexity import Perplexity, ValidationPerplexity
from lpa.train.result import RunResult, format_summary

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
