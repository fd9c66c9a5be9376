"""Training steps in float32 and in bfloat16, in turns, at the shapes of pico, nano and 130M.

    .venv/bin/python benchmarks/model/precision.py [--rounds N] [--shapes pico nano 130m]

A step is forward, backward and Muon, as the recipes train, on one thread. What is printed are medians of
CPU time, which other work on the machine changes little, and ratios within rounds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.machine import cpu_name
from common.models import loss_of

from lpa.device import dtype_name, fast_dtype
from lpa.model import LPAForCausalLM, preset_config
from lpa.study.bench.timing import median_ratio, time_interleaved
from lpa.train.config import OptimConfig
from lpa.train.optim.optimizers import build_optimizers

# Preset, changes to it, and samples of 256 tokens per step.
SHAPES = {
    "pico": ("nano", {"hidden_size": 128, "intermediate_size": 344, "rank": 32}, 8),
    "nano": ("nano", {"rank": 64}, 8),
    "130m": ("130m", {}, 2),
}
VOCABULARIES = {"pico": 4096, "nano": 4096, "130m": 32000}
TOKENS = 256


def training_step(model: LPAForCausalLM, samples: int, dtype: torch.dtype) -> Callable[[], None]:
    """A step on the same random tokens each time."""
    optimizers = build_optimizers(model, OptimConfig(name="muon"), dtype)
    optimizers.set_lr(1e-4)
    ids = torch.randint(
        model.config.vocab_size, (samples, TOKENS), generator=torch.Generator().manual_seed(0)
    )

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = loss_of(model, ids)
        loss.backward()
        optimizers.step()
        optimizers.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{cpu_name()}, one thread, torch {version('torch')}, auto: {dtype_name(fast_dtype('cpu'))}"
    )
    print(f"{'':<18}{'float32':>10}{'bfloat16':>10} tokens/s   time of bfloat16 / float32")
    for shape in options.shapes:
        preset, changes, samples = SHAPES[shape]
        for placement in ("none", "attention"):
            steps = {}
            for dtype in (torch.float32, torch.bfloat16):
                torch.manual_seed(0)
                config = preset_config(
                    preset, placement=placement, vocab_size=VOCABULARIES[shape], **changes
                )
                model = LPAForCausalLM(config).train()
                steps[dtype_name(dtype)] = training_step(model, samples, dtype)
            seconds = time_interleaved(steps, rounds=options.rounds, clock=time.process_time)
            ratio, half_iqr = median_ratio(seconds, "bfloat16", "float32")
            rates = [samples * TOKENS / statistics.median(values) for values in seconds.values()]
            name = f"{shape}, {'dense' if placement == 'none' else 'LPA'}"
            print(f"{name:<18}{rates[0]:>10,.0f}{rates[1]:>10,.0f}{ratio:>19.3f} ± {half_iqr:.3f}")


if __name__ == "__main__":
    main()
