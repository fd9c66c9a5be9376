import json
import os
import signal
from pathlib import Path

from lpa.train.distributed import World
from lpa.train.metrics_file import read_metrics
from lpa.train.result import RunResult
from lpa.train.signals import StopRequests

LATE = Path(__file__).parent / "workers" / "late_signal.py"


def test_signals_are_requests_and_the_handlers_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests(World.alone("cpu"), lambda: False) as requests:
        assert requests.counts() == [0.0, 0.0, 0.0]
        assert not requests.ask()
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.counts() == [0.0, 1.0, 0.0]
        assert not requests.agreed, "before all processes know"
        assert requests.ask()
        assert (requests.signal, requests.agreed) == (signal.SIGTERM, True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_time_alone_ends_a_run_but_no_evaluation():
    with StopRequests(World.alone("cpu"), lambda: True) as requests:
        assert not requests.ask()
        requests.agree(requests.counts())
        assert (requests.signal, requests.agreed) == (0, True)
        assert not requests.ask()
        assert requests.agreed


def test_a_signal_to_another_process_counts():
    requests = StopRequests(World.alone("cpu"), lambda: False)
    requests.agree([0.0, 2.0, 0.0])
    assert requests.signal == signal.SIGTERM


def test_a_signal_that_nobody_asked_about_goes_to_who_handled_it_before():
    told = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        with StopRequests(World.alone("cpu"), lambda: False):
            os.kill(os.getpid(), signal.SIGTERM)
            assert told == []
        assert told == [signal.SIGTERM]
        with StopRequests(World.alone("cpu"), lambda: False) as requests:
            os.kill(os.getpid(), signal.SIGTERM)
            assert requests.ask()
        assert told == [signal.SIGTERM], "one that a run has stopped for is not told again"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_is_complete_before_a_late_signal_ends_it(lpa, prepared, tmp_path):
    run = tmp_path / "run"
    finished = lpa(prepared, run, tmp_path / "out", script=LATE, processes=1)
    assert finished.code == -signal.SIGTERM, finished.stderr
    assert not (tmp_path / "out").exists(), "it went on after the run"
    assert RunResult.load(run).steps == 2
    assert (run / "final" / "model.safetensors").exists()
    assert read_metrics(run)[-1]["step"] == 2


def test_a_late_signal_to_one_process_ends_all_after_the_result(run_ranks, prepared, tmp_path):
    run_ranks(2, LATE.name, prepared, tmp_path / "run", tmp_path / "out")
    for rank in (0, 1):
        noted = json.loads((tmp_path / f"out.{rank}").read_text())
        assert noted == {"told": [signal.SIGTERM], "finished": True}
