import time

import pytest

from lpa.train.logging.timers import PhaseTimer


def test_phases_add_up_and_are_reset():
    timer = PhaseTimer()
    begin = time.perf_counter()
    with timer("data"):
        time.sleep(0.02)
    time.sleep(0.03)  # in no phase
    with timer("optimizer"):
        time.sleep(0.01)
    with timer("data"):
        time.sleep(0.02)
    elapsed = time.perf_counter() - begin
    seconds = timer.pop()
    assert list(seconds) == ["data", "optimizer"]
    assert seconds["data"] >= 0.04  # sleep never returns early
    assert seconds["optimizer"] >= 0.01
    assert sum(seconds.values()) <= elapsed - 0.03
    assert timer.pop() == {}


def test_an_inner_phase_pauses_the_outer_one():
    timer = PhaseTimer()
    begin = time.perf_counter()
    with timer("evaluation"):
        time.sleep(0.01)
        with timer("data"):
            time.sleep(0.03)
        time.sleep(0.01)
    elapsed = time.perf_counter() - begin
    seconds = timer.pop()
    assert seconds["data"] >= 0.03
    assert seconds["evaluation"] >= 0.02
    assert sum(seconds.values()) <= elapsed


def test_an_open_phase_is_split_by_pop():
    timer = PhaseTimer()
    with timer("checkpoint"):
        time.sleep(0.02)
        again = time.perf_counter()
        assert timer.pop()["checkpoint"] >= 0.02
    assert timer.pop()["checkpoint"] <= time.perf_counter() - again  # the earlier is gone


def test_a_phase_that_raises_is_counted_and_closed():
    timer = PhaseTimer()

    def fail():
        with timer("data"):
            time.sleep(0.01)
            raise ValueError("in the phase")

    with pytest.raises(ValueError, match="in the phase"):
        fail()
    time.sleep(0.02)
    assert timer.pop()["data"] >= 0.01
    assert timer.pop() == {}
