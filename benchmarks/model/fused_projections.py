"""The q, k and v pairs of one layer, by how their products are put together.

    .venv/bin/python benchmarks/model/fused_projections.py [--rounds 21] [--processor-time]

Width 768, rank 128, float32. `separate`: each pair alone. `downs together`: the first factors stacked
into one product, the second one by one. `ups batched` also runs the second factors as one batched product.
Forward and backward for a training step's tokens, forward alone for the few tokens of decoding.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.machine import add_clock_argument, open_clock

from lpa.study.bench.timing import median_ratio, time_interleaved

WIDTH, RANK = 768, 128


def separate(x: torch.Tensor, downs: list, ups: list) -> list[torch.Tensor]:
    return [F.linear(F.linear(x, down), up) for down, up in zip(downs, ups, strict=True)]


def downs_together(x: torch.Tensor, downs: list, ups: list) -> list[torch.Tensor]:
    latents = F.linear(x, torch.cat(downs)).split(RANK, dim=-1)
    return [F.linear(latent, up) for latent, up in zip(latents, ups, strict=True)]


def ups_batched(x: torch.Tensor, downs: list, ups: list) -> list[torch.Tensor]:
    latents = F.linear(x, torch.cat(downs)).view(-1, 3, RANK).transpose(0, 1)
    return list(torch.bmm(latents, torch.stack(ups).transpose(1, 2)))


VARIANTS = {"separate": separate, "downs together": downs_together, "ups batched": ups_batched}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    add_clock_argument(parser)
    options = parser.parse_args()
    clock = open_clock(options)
    torch.manual_seed(0)
    downs = [torch.randn(RANK, WIDTH, requires_grad=True) for _ in range(3)]
    ups = [torch.randn(WIDTH, RANK, requires_grad=True) for _ in range(3)]
    for tokens in (1, 8, 32, 128, 1024, 4096):
        for training in (False, True) if tokens >= 1024 else (False,):
            x = torch.randn(tokens, WIDTH, requires_grad=training)
            gradients = [torch.randn(tokens, WIDTH) for _ in range(3)]
            repeats = max(1, 2048 // tokens)

            def run(
                way: Callable,
                x: torch.Tensor = x,
                training: bool = training,
                gradients: list = gradients,
                repeats: int = repeats,
            ) -> None:
                with torch.set_grad_enabled(training):
                    for _ in range(repeats):
                        made = way(x, downs, ups)
                        if training:
                            torch.autograd.grad(made, [x, *downs, *ups], gradients)

            runs = {name: lambda way=way, run=run: run(way) for name, way in VARIANTS.items()}
            seconds = time_interleaved(runs, rounds=options.rounds, clock=clock)
            print(f"{tokens} tokens, {'forward and backward' if training else 'forward'}")
            for name, values in seconds.items():
                middle, half_iqr = median_ratio(seconds, name, "separate")
                micro = statistics.median(values) / repeats * 1e6
                print(f"  {name:<16}{micro:10.0f} µs  {middle:6.3f} ± {half_iqr:.3f}", flush=True)


if __name__ == "__main__":
    main()
