"""A training step of LPA beside three baselines, in one run.

    .venv/bin/python benchmarks/train/training_step.py [--compile] [--batch-size 4] [--seq-len 256]
        [--rounds 9] [--only a b c lpa]

A step is forward, backward, clipping and fused AdamW, float32, in the shape of setting 2 at 130M. The
models take turns; what is printed are medians of seconds, and of the ratios within each round.

a   `LlamaForCausalLM` of transformers, dense, with its own loss
b   the same, each attention projection `nn.Sequential(nn.Linear, nn.Linear)`
c   ours, dense
lpa ours
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.machine import add_clock_argument, open_clock
from common.models import MODELS, NAMES, loss_of

from lpa.study.bench.timing import median_ratio, time_interleaved

PAIRS = [("lpa", "b"), ("lpa", "c"), ("c", "a"), ("lpa", "a")]


def make_step(model: nn.Module, batch_size: int, seq_len: int) -> Callable[[], None]:
    """One optimizer step on random tokens."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(32000, (batch_size, seq_len), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        loss_of(model, tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    add_clock_argument(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    options = parser.parse_args()
    clock = open_clock(options)

    steps = {}
    for name in options.only:
        torch.manual_seed(0)
        model = MODELS[name](max_position_embeddings=max(256, options.seq_len))
        if options.compile:
            for layer in model.model.layers:
                layer.compile(fullgraph=True)
        steps[name] = make_step(model, options.batch_size, options.seq_len)
        start = time.perf_counter()
        steps[name]()
        if options.compile:
            print(f"{name:<4}first step {time.perf_counter() - start:.1f} s", flush=True)
    seconds = time_interleaved(steps, rounds=options.rounds, clock=clock)

    how = "compiled layer by layer" if options.compile else "eager"
    print(f"{options.batch_size} × {options.seq_len} tokens, {how}, {options.rounds} rounds")
    for name, values in seconds.items():
        print(f"{name:<4}{NAMES[name]:<32}{statistics.median(values):7.3f} s")
    for name, base in PAIRS:
        if name in seconds and base in seconds:
            middle, half_iqr = median_ratio(seconds, name, base)
            print(f"{name} / {base:<4}{middle:6.3f} ± {half_iqr:.3f}")


if __name__ == "__main__":
    main()
