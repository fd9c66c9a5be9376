import time

import pytest
import torch
from helpers.small_runs import small_config

from lpa.train import trainer as trainer_module
from lpa.train.logging.run_clock import RunClock
from lpa.train.result import RunStopped
from lpa.train.run import train
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


def test_the_wall_time_of_a_run_begins_before_its_data_is_verified(prepared, tmp_path, monkeypatch):
    open_data, perf_counter, passed = trainer_module.TrainingData, time.perf_counter, [0.0]

    def slowly(*arguments):
        passed[0] += 3600.0
        return open_data(*arguments)

    monkeypatch.setattr(time, "perf_counter", lambda: perf_counter() + passed[0])
    monkeypatch.setattr(trainer_module, "TrainingData", slowly)
    config = small_config(prepared, steps=4, max_seconds=3000.0, loggers=[])
    assert train(config, tmp_path / "run") == RunStopped(1, "train.max_seconds")
