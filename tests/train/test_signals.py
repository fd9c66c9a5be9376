import os
import signal

from lpa.train.distributed import World
from lpa.train.signals import StopRequests


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
