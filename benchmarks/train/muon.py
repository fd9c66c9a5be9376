"""A step of Muon in bfloat16 and in float32 beside one of AdamW, on the matrices of a 130M layer.

    .venv/bin/python benchmarks/train/muon.py [ROUNDS] [PLACEMENT]
    .venv/bin/torchrun --nproc-per-node N benchmarks/train/muon.py [ROUNDS] [PLACEMENT]

The three take turns; what is printed are medians of CPU time on one thread, which other work on the machine
changes little, and ratios of them. On an x86 CPU that has units for
bfloat16, ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI in the environment shows what one without them would do.
With torchrun the matrices are sharded over the processes, and the time is the mean of theirs.
"""

import argparse
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.machine import cpu_name

from lpa.device import fast_dtype
from lpa.model.presets import preset_config
from lpa.train.distributed.meta_init import build_meta_model
from lpa.train.optim.muon import Muon


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("placement", nargs="?", default="attention")
    options = parser.parse_args()
    rounds = options.rounds
    torch.set_num_threads(1)
    model = build_meta_model(preset_config("130m", placement=options.placement))
    shapes = [p.shape for p in model.model.layers[0].parameters() if p.ndim == 2]
    torch.manual_seed(0)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    starts = [torch.randn(shape) * 0.02 for shape in shapes]
    if processes > 1:
        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (processes,))
        starts = [distribute_tensor(start, mesh, [Shard(0)]) for start in starts]
    matrices = [torch.nn.Parameter(start) for start in starts]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    optimizers = {
        "adamw": torch.optim.AdamW(matrices, 1e-3, fused=True),
        "muon, bfloat16": Muon(matrices, 1e-3, dtype=torch.bfloat16),
        "muon, float32": Muon(matrices, 1e-3, dtype=torch.float32),
    }
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(rounds + 1):
        for name, optimizer in optimizers.items():
            start = time.process_time()
            optimizer.step()
            seconds[name].append(time.process_time() - start)
    # The first round makes the states.
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    if processes > 1:
        means = torch.tensor(list(median.values()), dtype=torch.float64)
        dist.all_reduce(means)
        median = dict(zip(median, (means / processes).tolist(), strict=True))
        rank = dist.get_rank()
        dist.destroy_process_group()
        if rank:
            return

    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "all")
    print(
        f"{cpu_name()}, {processes} processes of one thread, instructions: {limit}, "
        f"torch {version('torch')}, lpa {version('lpa')}"
    )
    print(
        f"placement {options.placement}: {len(shapes)} matrices, "
        f"{sum(map(torch.Size.numel, shapes)):,} numbers"
    )
    for name, value in median.items():
        print(f"{name:<16} {1000 * value:8.1f} ms  {value / median['adamw']:6.1f} times AdamW")
    ratio = median["muon, bfloat16"] / median["muon, float32"]
    chosen = str(fast_dtype("cpu")).removeprefix("torch.")
    print(f"bfloat16 / float32  {ratio:.2f}; chosen here: {chosen}")


if __name__ == "__main__":
    main()
