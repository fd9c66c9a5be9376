import torch

from lpa.train.validation import batches_of_rank


def batches(count):
    for number in range(count):
        yield {"input_ids": torch.full((1, 2), number), "shift_labels": torch.zeros(1, 2)}


def test_ranks_share_batches_and_make_as_many_forward_passes():
    of_rank = [list(batches_of_rank(batches(5), rank, 3)) for rank in range(3)]
    assert [len(found) for found in of_rank] == [2, 2, 2]
    counted = [
        int(batch["input_ids"][0, 0])
        for found in of_rank
        for batch in found
        if (batch["shift_labels"] >= 0).all()
    ]
    assert sorted(counted) == [0, 1, 2, 3, 4]
