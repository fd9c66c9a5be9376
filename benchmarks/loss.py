"""The cross entropy of the LM head, forward and backward, by how it is cut into chunks of tokens.

    .venv/bin/python benchmarks/loss.py [--tokens 1024] [--rounds 5] [--processor-time]

Width 768, vocabulary 32000, float32.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from side_by_side import add_clock, clock_of
from torch import nn

from lpa.model.loss import head_loss
from lpa.study.timing import PeakMemory, ratio, take_turns


def torchs(options: nn.LinearCrossEntropyOptions | None) -> Callable:
    def loss(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.linear_cross_entropy(hidden, head, targets, options=options)

    return loss


def ours(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return head_loss(hidden, head, None, targets, len(targets))


LOSSES = {
    "no chunks": torchs(None),
    "torch's choice": torchs(nn.LinearCrossEntropyOptions()),
    **{
        f"torch, {rows}": torchs(
            nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)
        )
        for rows in (128, 256, 512)
    },
    "ours": ours,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    add_clock(parser)
    options = parser.parse_args()
    clock = clock_of(options)
    torch.manual_seed(0)
    head = torch.randn(32000, 768).mul_(0.02).requires_grad_()
    hidden = torch.randn(options.tokens, 768, requires_grad=True)
    targets = torch.randint(32000, (options.tokens,))

    def run(loss: Callable) -> Callable[[], None]:
        def call() -> None:
            loss(hidden, head, targets).backward()
            head.grad = hidden.grad = None

        return call

    runs = {name: run(loss) for name, loss in LOSSES.items()}
    seconds = take_turns(runs, rounds=options.rounds, clock=clock)
    print(f"{options.tokens} tokens")
    for name, values in seconds.items():
        with PeakMemory(torch.device("cpu")) as peak:
            runs[name]()
        middle, spread = ratio(seconds, name, "no chunks")
        print(
            f"{name:<16}{statistics.median(values):7.3f} s {middle:6.3f} ± {spread:.3f}"
            f"  peak {(peak.bytes or 0) / 2**20:6,.0f} MiB"
        )


if __name__ == "__main__":
    main()
