import itertools

import pytest

from lpa.train.config import OptimConfig
from lpa.train.optim.lr_schedule import lr_at_step

SCHEDULES = ["cosine", "linear", "wsd"]


def rates(steps=100, **fields):
    config = OptimConfig(lr=1.0, **fields)
    return [lr_at_step(config, step, steps) for step in range(1, steps + 1)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warms_up_to_the_peak_and_ends_at_the_lowest(schedule):
    values = rates(schedule=schedule, warmup_steps=10, min_lr_ratio=0.1)
    assert values[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(values) == pytest.approx(1.0)
    assert values[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(values[9:]))


@pytest.mark.parametrize("decay_fraction", [0.2, 0.95, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_never_jumps(schedule, decay_fraction):
    values = rates(
        schedule=schedule, warmup_steps=20, min_lr_ratio=0.0, decay_fraction=decay_fraction
    )
    # The steepest are: a line over 20 steps up and down, and half a cosine over 80, π/2 times as steep.
    steepest = max(abs(a - b) for a, b in itertools.pairwise([0.0, *values]))
    assert steepest <= 1 / 20 + 1e-9


def test_cosine_is_halfway_in_the_middle():
    values = rates(warmup_steps=0, min_lr_ratio=0.0)
    assert values[49] == pytest.approx(0.5)


def test_linear_is_a_straight_line():
    values = rates(schedule="linear", warmup_steps=20, min_lr_ratio=0.2)
    assert values[20:] == pytest.approx([1 - 0.8 * n / 80 for n in range(1, 81)])


def test_wsd_stays_at_the_peak_until_it_decays():
    values = rates(schedule="wsd", warmup_steps=10, decay_fraction=0.2, min_lr_ratio=0.0)
    assert values[9:80] == [1.0] * 71
    assert values[89] == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_within_its_warm_up_stays_finite(schedule):
    assert rates(steps=3, schedule=schedule, warmup_steps=10) == pytest.approx([0.1, 0.2, 0.3])


def test_after_each_merge_of_relora_the_rate_rises_again():
    plain = rates(steps=300, warmup_steps=10)
    ours = rates(steps=300, warmup_steps=10, name="relora", restart_every=80)
    assert ours[:80] == plain[:80]
    for start in (80, 160, 240):
        for within in range(50):
            assert ours[start + within] == pytest.approx(plain[start + within] * (within + 1) / 50)
        assert ours[start + 50 : start + 80] == plain[start + 50 : start + 80]
