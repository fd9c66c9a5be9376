"""Muon over sharded matrices in some layouts of four processes, beside plain ones.

muon.py OUT    (JSON: by layout, whether all weights are equal to the bit, and how many matrices each process
orthogonalized)
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from lpa.train.distributed.dtensor import full_tensor
from lpa.train.optim import muon

SHAPES = [(32, 24), (24, 32), (22, 21)] + 7 * [(32, 24)]
LAYOUTS = {
    "rows": ((4,), [Shard(0)]),
    "columns": ((4,), [Shard(1)]),
    "replicated": ((4,), [Replicate()]),
    "replicated rows": ((2, 2), [Replicate(), Shard(0)]),
    "rows, replicated": ((2, 2), [Shard(0), Replicate()]),
    "rows and columns": ((2, 2), [Shard(0), Shard(1)]),
    # As FSDP splits what tensor parallelism has split before.
    "rows of rows": ((2, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    orthogonalize, worked = muon.newton_schulz, [0]

    def counted(stack: torch.Tensor) -> torch.Tensor:
        worked[0] += len(stack)
        return orthogonalize(stack)

    results = {}
    for name, (sizes, placements) in LAYOUTS.items():
        mesh = init_device_mesh("cpu", sizes)

        def distribute(tensor, mesh=mesh, placements=placements):
            if not isinstance(placements[0], _StridedShard):
                return distribute_tensor(tensor.clone(), mesh, placements, src_data_rank=None)
            outer, inner = mesh.get_coordinate()
            local = tensor.chunk(2)[inner].chunk(2)[outer].clone()
            sizes = {"shape": tensor.shape, "stride": tensor.stride(), "run_check": False}
            return DTensor.from_local(local, mesh, placements, **sizes)

        torch.manual_seed(0)
        plain = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
        sharded = [torch.nn.Parameter(distribute(p.detach())) for p in plain]
        alone = muon.Muon(plain, 1e-2, 0.1, dtype=torch.bfloat16)
        together = muon.Muon(sharded, 1e-2, 0.1, dtype=torch.bfloat16)
        worked[0] = 0
        for _ in range(2):
            for p, s in zip(plain, sharded, strict=True):
                p.grad = torch.randn_like(p)
                s.grad = distribute(p.grad)
            alone.step()
            muon.newton_schulz = counted
            together.step()
            muon.newton_schulz = orthogonalize
        equal = all(
            torch.equal(full_tensor(s.detach()), p) for p, s in zip(plain, sharded, strict=True)
        )
        to_list = [None] * dist.get_world_size()
        dist.all_gather_object(to_list, (equal, worked[0]))
        results[name] = to_list
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
