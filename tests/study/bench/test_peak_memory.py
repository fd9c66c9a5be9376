"""The peak memory of a model on a CPU, whatever was measured before."""

import sys

import pytest
import torch

from lpa.errors import UserError
from lpa.model.presets import preset_config
from lpa.study.bench.peak_memory import cpu_peak_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak")


def peaks(*placements):
    configs = {
        f"{number} {placement}": preset_config("nano", placement=placement)
        for number, placement in enumerate(placements)
    }
    found = cpu_peak_memory(configs, batch_size=2, seq_len=16, dtype=torch.float32, compiled=False)
    return [found[name] for name in configs]


def test_a_model_needs_the_same_memory_whatever_was_measured_before():
    first, ffn, second = peaks("attention", "ffn", "attention")
    assert first > 16 * 2e6  # weights, gradients and two moments of 4 bytes
    # Stacks of threads and pages of libraries differ by a few hundred kB of 300 MB.
    assert second == pytest.approx(first, rel=0.01)
    assert ffn != pytest.approx(first, rel=0.01)


def test_a_process_that_fails_is_one_line(monkeypatch):
    monkeypatch.setattr("lpa.study.bench.peak_memory.sys.executable", "/bin/false")
    with pytest.raises(UserError, match=r"peak memory: .* exit code 1 \(no word\)"):
        peaks("attention")
