import time

import pytest
import torch

from lpa.train.logging.run_clock import RunClock
from lpa.train.state import TrainState


@pytest.fixture
def now(monkeypatch):
    """Seconds that a test sets."""
    seconds = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    return seconds


def test_steps_count_and_what_lies_between_them_does_not(now):
    clock, state = RunClock(None), TrainState()
    for step_seconds, pause in ((2.0, 5.0), (3.0, 0.0)):
        clock.start_step()
        now[0] += step_seconds
        clock.end_step(state)
        now[0] += pause
    assert state.train_seconds == state.pending_seconds == 5.0
    clock.update_totals(state, torch.device("cpu"))
    assert state.wall_seconds == 10.0
    assert not clock.is_time_up()


def test_a_resumed_run_continues_its_wall_time(now):
    clock = RunClock(max_seconds=50.0)
    clock.resume(TrainState(wall_seconds=45.0))
    now[0] += 4.0
    assert not clock.is_time_up()
    now[0] += 1.0
    assert clock.is_time_up()
