import numpy as np
import pytest
import torch

from lpa.data.dataset import IGNORE_INDEX, TokenSplit
from lpa.scoring.windows import batch_windows, collate_windows, sequence_windows


@pytest.mark.parametrize("length", [2, 9, 16, 17, 18, 40])
@pytest.mark.parametrize("stride", [None, 3])
@pytest.mark.parametrize("rows", [None, 8])
def test_every_token_but_the_first_is_a_label_once(length, stride, rows):
    tokens = np.arange(100, 100 + length)
    scored = []
    for batch in batch_windows(sequence_windows(tokens, seq_len=8, stride=stride), 2):
        tensors = collate_windows(batch, length=rows)
        input_ids, labels = tensors["input_ids"], tensors["shift_labels"]
        assert input_ids.shape == labels.shape
        assert input_ids.shape[0] <= 2
        assert rows is None or input_ids.shape[1] == rows
        mask = labels != IGNORE_INDEX
        assert torch.equal(labels[mask], input_ids[mask] + 1)  # each predicted from the one before
        scored += labels[mask].tolist()
    assert scored == tokens[1:].tolist()


def test_a_token_before_the_sequence_makes_its_first_one_a_target():
    windows = list(sequence_windows(np.arange(5), seq_len=4, first=9, offset=20))
    assert [window.ids.tolist() for window in windows] == [[9, 0, 1, 2, 3], [3, 4]]
    assert [window.stop for window in windows] == [24, 25]


def test_positions_begin_again_with_each_document():
    (window,) = sequence_windows(np.array([5, 0, 6, 7, 0, 8]), seq_len=5)
    positions = collate_windows([window], eos_token_id=0)["position_ids"]
    assert positions.tolist() == [[0, 1, 0, 1, 2]]


def test_sorting_keeps_windows_of_like_length_together():
    windows = [w for n in (2, 9, 3, 8) for w in sequence_windows(np.arange(n), seq_len=9)]
    lengths = [[len(w.ids) for w in batch] for batch in batch_windows(windows, 2, sort=True)]
    assert lengths == [[2, 3], [8, 9]]


def test_tokens_on_disk_make_the_windows_of_those_in_memory(prepared):
    on_disk = TokenSplit(prepared, "validation")
    windows = [list(sequence_windows(tokens, seq_len=50)) for tokens in (on_disk, on_disk[:])]
    for left, right in zip(*windows, strict=True):
        assert left.ids.tolist() == right.ids.tolist()
        assert left[1:] == right[1:]
