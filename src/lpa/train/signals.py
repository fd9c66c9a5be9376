"""Requests to stop: SIGINT, SIGTERM and a time that is up, agreed on by all processes."""

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from lpa.train.distributed import World, sum_over_ranks

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """Collects SIGINT and SIGTERM instead of dying of them, while in its context.

    A signal may reach one process alone, so nothing is done about it before all know. A second SIGINT
    ends a process at once. A signal that came too late for anybody to ask takes effect, in all
    processes, when the context is left: then whoever handled it before gets it.

    Attributes:
        signal: the one that all processes stop for, 0 where there is none.
        agreed: whether all stop, for a signal or because the time is up.
    """

    def __init__(self, world: World, time_is_up: Callable[[], bool]) -> None:
        self._world = world
        self._time_is_up = time_is_up
        self._received = dict.fromkeys(_SIGNALS, False)
        self._before: dict[int, Any] = {}
        self.signal = 0
        self.agreed = False

    def __enter__(self) -> "StopRequests":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # When one process dies torchrun ends the others, which first want to say which one it was.
        if kind is not None and self._world.size > 1:
            return
        acted_on = kind is not None or bool(self.signal)
        if not acted_on:
            self.ask()  # no process leaves, perhaps for good, before all are here
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if not acted_on and (late := self.signal or self._own()):
            signal.raise_signal(late)

    def _own(self) -> int:
        """A signal that has reached this process, 0 where there is none."""
        return next((int(number) for number in _SIGNALS if self._received[number]), 0)

    def _note(self, number: int, _: object) -> None:
        self._received[signal.Signals(number)] = True
        if number == signal.SIGINT:
            # The system's own action needs no turn of the interpreter, which may be deep in a kernel.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if self._world.is_main:  # not `print`, which a handler may not enter a second time
                os.write(2, b"\nlpa: stopping with a checkpoint; once more ends at once\n")

    def counts(self) -> list[float]:
        """What this process adds to the exchange of all: one number per signal, and whether time is up."""
        up = self._world.is_main and self._time_is_up()
        return [*(float(self._received[number]) for number in _SIGNALS), float(up)]

    def agree(self, sums: Sequence[float]) -> None:
        """Take in the counts of all processes, added up."""
        for number, count in zip(_SIGNALS, sums, strict=False):
            if count and not self.signal:
                self.signal = int(number)
        self.agreed = self.agreed or any(sums)

    def ask(self) -> bool:
        """Whether a signal has reached any process; all ask together. Time alone interrupts no evaluation."""
        self.agree(sum_over_ranks(self.counts()[:-1]))
        return bool(self.signal)
