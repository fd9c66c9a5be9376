"""The peak memory of a model on a CPU, whatever was measured before."""

import sys

import pytest
import torch

from lpa.errors import UserError
from lpa.model.presets import preset_config
from lpa.study.bench.peak_memory import cpu_peak_memory
from lpa.study.bench.run_bench import run_bench

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak")


def attention_alone():
    config = preset_config("nano", placement="attention")
    return cpu_peak_memory(config, batch_size=2, seq_len=16, dtype=torch.float32, compiled=False)


@pytest.mark.slow
def test_a_model_needs_the_same_memory_alone_and_after_others():
    first, second = attention_alone(), attention_alone()
    assert first > 16 * 2e6  # weights, gradients and two moments of 4 bytes
    bench = run_bench(
        "nano", placement=["ffn", "attention"], seq_len=16, batch_size=2, rounds=1, device="cpu"
    )
    # Stacks of threads and pages of libraries differ by a few hundred kB of 300 MB.
    assert second == pytest.approx(first, rel=0.01)
    assert bench.models["attention"].peak_memory_bytes == pytest.approx(first, rel=0.01)


def test_a_process_that_fails_is_one_line(monkeypatch):
    monkeypatch.setattr("lpa.study.bench.peak_memory.sys.executable", "/bin/false")
    with pytest.raises(UserError, match=r"peak memory: .* exit code 1 \(no word\)"):
        attention_alone()
