"""The cross entropy of the LM head in chunks of tokens, alone and within a training step.

    .venv/bin/python benchmarks/model/loss.py [--preset 130m] [--vocab-size 32000] [--tokens 1024]

Forward and backward passes in float32, with the sizes of a preset, in turns.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.machine import add_clock_argument, open_clock

from lpa.model import LPAForCausalLM, modeling_lpa
from lpa.model.layers import loss
from lpa.model.presets import preset_config
from lpa.study.bench.timing import PeakMemory, median_ratio, time_interleaved


def torch_loss(options: nn.LinearCrossEntropyOptions | None) -> Callable[..., Tensor]:
    def lm_head_loss(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, items: Tensor | int
    ) -> Tensor:
        total = F.linear_cross_entropy(
            hidden, weight, targets, linear_bias=bias, reduction="sum", options=options
        )
        return total / items

    return lm_head_loss


LOSSES = {
    "ours": loss.lm_head_loss,
    "no chunks": torch_loss(None),
    "torch's choice": torch_loss(nn.LinearCrossEntropyOptions()),
    **{
        f"torch, {rows}": torch_loss(
            nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)
        )
        for rows in (128, 256, 512)
    },
}
# Of a whole step, which takes long.
IN_STEPS = ("ours", "torch, 512")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="130m")
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-rounds", type=int, default=5)
    add_clock_argument(parser)
    options = parser.parse_args()
    clock = open_clock(options)
    config = preset_config(options.preset, placement="attention", vocab_size=options.vocab_size)
    torch.manual_seed(0)
    model = LPAForCausalLM(config).train()
    seq_len = min(256, options.tokens)
    ids = torch.randint(config.vocab_size, (options.tokens // seq_len, seq_len))
    hidden = torch.randn(options.tokens, config.hidden_size, requires_grad=True)
    head, targets = model.lm_head.weight, ids.flatten()

    def alone(name: str) -> Callable[[], None]:
        def call() -> None:
            LOSSES[name](hidden, head, None, targets, len(targets)).backward()
            head.grad = hidden.grad = None

        return call

    def step(name: str) -> Callable[[], None]:
        def call() -> None:
            modeling_lpa.lm_head_loss = LOSSES[name]
            model(input_ids=ids, labels=ids, use_cache=False, return_logits=False).loss.backward()
            model.zero_grad()

        return call

    print(f"{options.preset}: {options.tokens} tokens, width {config.hidden_size}, "
          f"vocabulary {config.vocab_size}")  # fmt: skip
    for title, runs, rounds in (
        ("the head alone", {name: alone(name) for name in LOSSES}, options.rounds),
        ("a whole step", {name: step(name) for name in IN_STEPS}, options.step_rounds),
    ):
        print(title)
        seconds = time_interleaved(runs, rounds=rounds, clock=clock)
        for name, values in seconds.items():
            with PeakMemory(torch.device("cpu")) as peak:
                runs[name]()
            middle, half_iqr = median_ratio(seconds, name, "torch, 512")
            print(
                f"  {name:<16}{statistics.median(values):8.3f} s  {middle:6.3f} ± {half_iqr:.3f} of torch, "
                f"512  peak {(peak.bytes or 0) / 2**20:6,.0f} MiB"
            )


if __name__ == "__main__":
    main()
