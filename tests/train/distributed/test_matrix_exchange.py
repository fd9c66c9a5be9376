"""Who gets which matrices; that all numbers arrive is tested with Muon, in real processes."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lpa.train.distributed.matrix_exchange import MatrixExchange
from lpa.train.simulation.fake_world import fake_process_group


def test_processes_beyond_the_number_of_matrices_get_none():
    with fake_process_group(512):
        mesh = init_device_mesh("cpu", (512,))
        like = distribute_tensor(torch.zeros(1000, 3), mesh, [Shard(0)], src_data_rank=None)
        (level,) = MatrixExchange(like, 4).levels
        assert level.counts == [1] * 4 + [0] * 508
        assert level.extents == [2] * 500 + [0] * 12
        assert level.shape == (2, 3)
        assert level.collected_shape == (1000, 3)
        assert MatrixExchange(like, 4).collect(torch.zeros(4, 2, 3)).shape == (1, 1000, 3)
        assert MatrixExchange(like, 4).distribute(torch.zeros(1, 1000, 3)).shape == (4, 2, 3)


def test_what_processes_hold_alike_is_divided_first_and_sent_in_shards():
    with fake_process_group(8):
        mesh = init_device_mesh("cpu", (4, 2))
        placements = [Shard(0), Replicate()]
        like = distribute_tensor(torch.zeros(8, 3), mesh, placements, src_data_rank=None)
        alike, shards = MatrixExchange(like, 7).levels
        assert (alike.dimension, alike.axis, alike.counts, alike.shape) == (1, None, [4, 3], (2, 3))
        assert (shards.dimension, shards.axis, shards.counts) == (0, 1, [1] * 4)


def test_a_single_process_exchanges_nothing():
    with fake_process_group(2):
        mesh = init_device_mesh("cpu", (2, 1))
        placements = [Shard(0), Shard(0)]
        like = distribute_tensor(torch.zeros(8, 3), mesh, placements, src_data_rank=None)
        (level,) = MatrixExchange(like, 1).levels
        assert level.dimension == 0
