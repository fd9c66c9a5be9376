"""What a training step would take if nothing but its arithmetic took time.

    .venv/bin/python benchmarks/model/roofline.py [--batch-size 4] [--seq-len 256] [--rounds 7]

Every matrix product of a step (forward, and the gradients of input and weight) and the attention are run
alone, into memory that is there already, as often as a step needs them; AdamW is a pass over weights,
gradients and moments. No implementation in terms of these kernels can go below the sum. Beside it stand the
FLOPs and rate of the products, and the bytes per second of AdamW.
"""

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.machine import describe_machine
from common.models import MODELS, NAMES, SHAPE

from lpa.study.bench.timing import time_interleaved

HEADS, LAYERS = SHAPE["num_attention_heads"], SHAPE["num_hidden_layers"]


def products(inputs: int, outputs: int, tokens: int) -> Callable[[], None]:
    """The three products of a linear map in a step."""
    x, weight, gradient = (
        torch.randn(shape) for shape in ((tokens, inputs), (outputs, inputs), (tokens, outputs))
    )
    made = [torch.empty_like(tensor) for tensor in (gradient, x, weight)]

    def run() -> None:
        torch.mm(x, weight.T, out=made[0])
        torch.mm(gradient, weight, out=made[1])
        torch.mm(gradient.T, x, out=made[2])

    return run


def attention(batch_size: int, seq_len: int) -> Callable[[], None]:
    """Causal attention of one layer, both ways."""
    width = SHAPE["hidden_size"] // HEADS
    leaves = [torch.randn(batch_size, HEADS, seq_len, width, requires_grad=True) for _ in range(3)]
    gradient = torch.randn(batch_size, HEADS, seq_len, width)

    def run() -> None:
        out = F.scaled_dot_product_attention(*leaves, is_causal=True)
        torch.autograd.grad(out, leaves, gradient)

    return run


def adamw(parameters: list[nn.Parameter]) -> Callable[[], None]:
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True).step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    tokens = options.batch_size * options.seq_len
    print(describe_machine())
    print(
        f"{options.batch_size} × {options.seq_len} tokens, medians of {options.rounds}, seconds per step"
    )
    for name in ("a", "b", "lpa"):
        model = MODELS[name]()
        shapes = Counter(
            (module.in_features, module.out_features)
            for module in model.modules()
            if isinstance(module, nn.Linear)
        )
        runs = {str(shape): products(*shape, tokens) for shape in shapes}
        runs |= {
            "attention": attention(options.batch_size, options.seq_len),
            "adamw": adamw(list(model.parameters())),
        }
        found = time_interleaved(runs, rounds=options.rounds)
        seconds = {key: statistics.median(values) for key, values in found.items()}
        matrix = sum(count * seconds[str(shape)] for shape, count in shapes.items())
        flops = sum(count * 6 * tokens * i * o for (i, o), count in shapes.items())
        # AdamW reads weight, gradient and both moments, and writes all but the gradient.
        moved = 28 * sum(p.numel() for p in model.parameters())
        print(
            f"{name:<4}{NAMES[name]:<32} products {matrix:.3f} ({flops / 1e9:.0f} GFLOP, "
            f"{flops / matrix / 1e9:.0f} GFLOP/s)  attention {LAYERS * seconds['attention']:.3f}  "
            f"AdamW {seconds['adamw']:.3f} ({moved / seconds['adamw'] / 1e9:.0f} GB/s)  "
            f"sum {matrix + LAYERS * seconds['attention'] + seconds['adamw']:.3f}",
            flush=True,
        )
        for shape, count in shapes.items():
            rate = 6 * tokens * shape[0] * shape[1] / seconds[str(shape)] / 1e9
            print(f"    {count:3} × {shape[0]:5} to {shape[1]:5}: {rate:4.0f} GFLOP/s")


if __name__ == "__main__":
    main()
