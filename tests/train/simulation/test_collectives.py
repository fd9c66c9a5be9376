"""The log of exchanges, beside torch's own count of them."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from lpa.train.distributed.parallelize import ParallelLayout
from lpa.train.simulation.collectives import Collective, CollectiveLog, merge_collectives
from lpa.train.simulation.fake_world import fake_process_group, fake_tensors


def test_the_log_counts_what_torch_counts_and_says_along_which_dimension():
    with fake_process_group(8):
        mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("replicate", "shard", "tensor"))
        with fake_tensors():
            whole = torch.zeros(8, 4)
            placements = [Replicate(), Shard(0), Replicate()]
            sharded = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            with CommDebugMode() as of_torch, CollectiveLog(ParallelLayout(2, 2, 2)) as log:
                sharded.redistribute(placements=[Replicate()] * 3)
                dist.all_reduce(torch.zeros(3))
                log.repeat, log.phase = 5, "optimizer"
                dist.all_reduce(torch.zeros(3), group=mesh.get_group("replicate"))
    counts = {(c.phase, c.dimension, c.kind): (c.count, c.message_bytes) for c in log.collectives}
    assert counts == {
        ("forward_backward", "shard", "all_gather"): (1, 8 * 4 * 4),
        ("forward_backward", "all", "all_reduce"): (1, 3 * 4),
        ("optimizer", "replicate", "all_reduce"): (5, 5 * 3 * 4),
    }
    assert of_torch.get_total_counts() == 3  # which knows no repetition


@pytest.mark.parametrize(
    ("kind", "share"), [("all_gather", 0.75), ("reduce_scatter", 0.75), ("all_reduce", 1.5)]
)
def test_what_a_ring_sends(kind, share):
    assert Collective("optimizer", "shard", kind, 4, 1, 1000).sent_bytes == 1000 * share


def test_collectives_of_one_kind_add_up():
    one = Collective("optimizer", "shard", "all_gather", 4, 1, 1000)
    other = Collective("optimizer", "tensor", "all_gather", 4, 1, 1000)
    twice = Collective("optimizer", "shard", "all_gather", 4, 2, 2000)
    assert merge_collectives([one, other, one]) == [twice, other]
