"""As ranks of one world: how long one process waits for another in a step, and for long work.

waiting.py TIMEOUT LONG_TIMEOUT OUT    (seconds; OUT gets, of rank 0, what became of each wait and how long it
took)
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from lpa.train.distributed import process_group
from lpa.train.distributed.parallelize import ParallelLayout, build_mesh
from lpa.train.distributed.process_group import all_reduce_tensor, run_on_all_ranks


def timed(wait) -> tuple[str, float]:
    began = time.monotonic()
    try:
        wait()
        return "met", time.monotonic() - began
    except RuntimeError:
        return "gave up", time.monotonic() - began


def main() -> None:
    timeout, long_timeout, out = float(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    world = process_group.init_process_group("cpu", timeout=timeout, long_timeout=long_timeout)
    mesh = build_mesh(ParallelLayout(1, world.size // 2, 2), "cpu")
    late = 2 * timeout if world.rank else 0.0

    def wait_in_vain(exchange) -> tuple[str, float]:
        return timed(exchange if world.is_main else lambda: time.sleep(late))

    along = mesh.get_group("tensor")
    results = {
        "long work": timed(lambda: run_on_all_ranks(lambda: time.sleep(late))),
        "mesh": wait_in_vain(lambda: dist.all_reduce(torch.ones(1), group=along)),
        "step": wait_in_vain(lambda: all_reduce_tensor(torch.ones(1))),
    }
    if world.is_main:
        out.write_text(json.dumps(results))


main()
