import time

import pytest

from lpa.train.phases import PhaseClock


def test_phases_add_up_and_are_reset():
    clock = PhaseClock()
    begin = time.perf_counter()
    with clock("data"):
        time.sleep(0.02)
    time.sleep(0.03)  # in no phase
    with clock("optimizer"):
        time.sleep(0.01)
    with clock("data"):
        time.sleep(0.02)
    elapsed = time.perf_counter() - begin
    seconds = clock.take()
    assert list(seconds) == ["data", "optimizer"]
    assert seconds["data"] >= 0.04  # sleep never returns early
    assert seconds["optimizer"] >= 0.01
    assert sum(seconds.values()) <= elapsed - 0.03
    assert clock.take() == {}


def test_an_inner_phase_pauses_the_outer_one():
    clock = PhaseClock()
    begin = time.perf_counter()
    with clock("evaluation"):
        time.sleep(0.01)
        with clock("data"):
            time.sleep(0.03)
        time.sleep(0.01)
    elapsed = time.perf_counter() - begin
    seconds = clock.take()
    assert seconds["data"] >= 0.03
    assert seconds["evaluation"] >= 0.02
    assert sum(seconds.values()) <= elapsed


def test_an_open_phase_is_split_by_take():
    clock = PhaseClock()
    with clock("checkpoint"):
        time.sleep(0.02)
        again = time.perf_counter()
        assert clock.take()["checkpoint"] >= 0.02
    assert clock.take()["checkpoint"] <= time.perf_counter() - again  # the earlier is gone


def test_a_phase_that_raises_is_counted_and_closed():
    clock = PhaseClock()

    def fail():
        with clock("data"):
            time.sleep(0.01)
            raise ValueError("in the phase")

    with pytest.raises(ValueError, match="in the phase"):
        fail()
    time.sleep(0.02)
    assert clock.take()["data"] >= 0.01
    assert clock.take() == {}
