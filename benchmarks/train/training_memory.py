"""Peak memory of two training steps, each model in its own process.

    .venv/bin/python benchmarks/train/training_memory.py [--batch-size 8] [--seq-len 256] [--only a b c lpa …]

What is printed is the peak of resident memory above what the interpreter and its libraries held: of whole
steps (with gradients and both moments of AdamW, clipped), and of forward and backward passes alone.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from training_step import make_step

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.machine import describe_machine
from common.models import MODELS, NAMES, loss_of

from lpa.model.activation_checkpointing import apply_activation_checkpointing
from lpa.study.bench.timing import PeakMemory

CASES = {
    "a": ("a", "none"),
    "b": ("b", "none"),
    "c": ("c", "none"),
    "lpa": ("lpa", "none"),
    "lpa latent": ("lpa", "latent"),
    "lpa full": ("lpa", "full"),
}


def peak(case: str, batch_size: int, seq_len: int, optimizer: bool) -> int:
    name, mode = CASES[case]
    tokens = torch.randint(32000, (batch_size, seq_len), generator=torch.Generator().manual_seed(0))
    with PeakMemory(torch.device("cpu")) as memory:
        model = MODELS[name](max_position_embeddings=seq_len).train()
        if mode != "none":
            apply_activation_checkpointing(model, mode)
        step = make_step(model, batch_size, seq_len)
        for _ in range(2):
            if optimizer:
                step()
            else:
                loss_of(model, tokens).backward()
                model.zero_grad(set_to_none=True)
    assert memory.bytes is not None
    return memory.bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case, optimizer = options.one
        print(peak(case, options.batch_size, options.seq_len, optimizer == "True"))
        return
    print(describe_machine())
    print(f"{options.batch_size} × {options.seq_len} tokens; MiB, and of b's")
    found: dict[tuple[str, bool], int] = {}
    for case in options.only:
        for optimizer in (True, False):
            command = [sys.executable, __file__, "--one", case, str(optimizer)]
            sizes = ["--batch-size", str(options.batch_size), "--seq-len", str(options.seq_len)]
            output = subprocess.run([*command, *sizes], stdout=subprocess.PIPE, check=True)
            found[case, optimizer] = int(output.stdout)
        cells = []
        for optimizer in (True, False):
            ratio = found[case, optimizer] / found.get(("b", optimizer), found[case, optimizer])
            cells.append(f"{found[case, optimizer] / 2**20:8,.0f} {ratio:6.3f}")
        name, mode = CASES[case]
        label = NAMES[name] + ("" if mode == "none" else f", checkpointing {mode}")
        print(f"{label:<40} steps {cells[0]}   without optimizer {cells[1]}", flush=True)


if __name__ == "__main__":
    main()
