"""What each of several runs at a time has of the machine."""

import pytest

from lpa.study.execution.process_pool import Slot, make_slots, visible_gpus


def test_slots_have_separate_cores_and_gpus_while_there_are_enough():
    slots = make_slots(3, [0, 1, 2, 4, 5, 6, 7], ["3", "5"])
    assert slots == [Slot([0, 1], "3"), Slot([2, 4], "5"), Slot([5, 6], "3")]
    assert slots[1].environment == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "5"}
    assert make_slots(3, [0, 1], []) == [Slot([], None)] * 3
    assert Slot([], None).environment == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("given", "count", "names"),
    [(None, 2, ["0", "1"]), ("2,GPU-7f", 2, ["2", "GPU-7f"]), ("", 0, []), ("0,none", 1, ["0"])],
)
def test_gpus_are_those_that_are_visible(monkeypatch, given, count, names):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == names
