import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.small_runs import small_config

from lpa.train.distributed.process_group import World
from lpa.train.distributed.stop_signals import StopRequests
from lpa.train.logging.metrics_file import read_metrics
from lpa.train.result import RunResult
from lpa.train.run import train

LATE = Path(__file__).parents[1] / "workers" / "late_signal.py"


def test_signals_are_requests_and_the_handlers_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests(World.single_process("cpu"), lambda: False) as requests:
        assert requests.to_list() == [0.0, 0.0, 0.0]
        assert not requests.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.to_list() == [0.0, 1.0, 0.0]
        assert not requests.should_stop, "before all processes know"
        assert requests.poll()
        assert (requests.signal, requests.should_stop) == (signal.SIGTERM, True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_time_alone_ends_a_run_but_no_evaluation():
    with StopRequests(World.single_process("cpu"), lambda: True) as requests:
        assert not requests.poll()
        requests.merge(requests.to_list())
        assert (requests.signal, requests.should_stop) == (0, True)
        assert not requests.poll()
        assert requests.should_stop


def test_a_signal_to_another_process_counts():
    requests = StopRequests(World.single_process("cpu"), lambda: False)
    requests.merge([0.0, 2.0, 0.0])
    assert requests.signal == signal.SIGTERM


def test_an_unpolled_signal_is_passed_to_the_earlier_handler():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with StopRequests(World.single_process("cpu"), lambda: False):
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == []
        assert received == [signal.SIGTERM]
        with StopRequests(World.single_process("cpu"), lambda: False) as requests:
            os.kill(os.getpid(), signal.SIGTERM)
            assert requests.poll()
        assert received == [signal.SIGTERM], "one that a run has stopped for is not passed on again"
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
        assert noted == {"received": [signal.SIGTERM], "finished": True}


def test_a_thread_beside_the_main_one_trains_and_leaves_signals_alone(prepared, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    config = small_config(prepared, steps=2, eval_tokens=64, loggers=[])
    train(config, tmp_path / "run")
    with ThreadPoolExecutor(1) as threads:
        result = threads.submit(train, config, tmp_path / "run", overwrite=True).result()
    assert isinstance(result, RunResult)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
