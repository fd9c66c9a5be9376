"""Requests to stop: SIGINT, SIGTERM and a time that is up, agreed on by all processes."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from lpa.train.distributed.launch import agent_id
from lpa.train.distributed.process_group import World, all_gather_objects, all_reduce_sum

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """Collects SIGINT and SIGTERM instead of dying of them, while in its context.

    A signal may reach one process alone, so nothing is done about it before all know. A second SIGINT
    ends a process at once. A signal that came too late for anybody to ask takes effect, in all
    processes, when the context is left: then whoever handled it before gets it. In a thread beside the main
    one nothing is collected: Python lets the main thread alone handle signals.

    Attributes:
        signal: the one that all processes stop for, 0 where there is none.
        should_stop: whether all stop, for a signal or because the time is up.
    """

    def __init__(self, world: World, is_time_up: Callable[[], bool]) -> None:
        self._world = world
        self._is_time_up = is_time_up
        self._received = dict.fromkeys(_SIGNALS, False)
        self._previous_handlers: dict[int, Any] = {}
        self.signal = 0
        self.should_stop = False

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {
                number: signal.signal(number, self._on_signal) for number in _SIGNALS
            }
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # When one process dies torchrun ends the others, which first want to say which one it was.
        if kind is not None and self._world.size > 1:
            return
        acted_on = kind is not None or bool(self.signal)
        if not acted_on:
            self.poll()  # no process leaves, perhaps for good, before all are here
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if not acted_on and (late := self.signal or self._received_signal()):
            signal.raise_signal(late)

    def _received_signal(self) -> int:
        """A signal that has reached this process, 0 where there is none."""
        return next((int(number) for number in _SIGNALS if self._received[number]), 0)

    def _on_signal(self, number: int, _: object) -> None:
        self._received[signal.Signals(number)] = True
        if number == signal.SIGINT:
            # The system's own action needs no turn of the interpreter, which may be deep in a kernel.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if self._world.is_main:  # not `print`, which a handler may not enter a second time
                os.write(2, b"\nlpa: stopping with a checkpoint; once more ends at once\n")

    def to_list(self) -> list[float]:
        """What this process adds to the exchange of all: one number per signal, and whether time is up."""
        is_up = self._world.is_main and self._is_time_up()
        return [*(float(self._received[number]) for number in _SIGNALS), float(is_up)]

    def merge(self, sums: Sequence[float]) -> None:
        """Take in the counts of all processes, added up."""
        for number, count in zip(_SIGNALS, sums, strict=False):
            if count and not self.signal:
                self.signal = int(number)
        self.should_stop = self.should_stop or any(sums)

    def poll(self) -> bool:
        """Whether a signal has reached any process; all ask together. Time alone interrupts no evaluation."""
        self.merge(all_reduce_sum(self.to_list()[:-1]))
        return bool(self.signal)

    def is_from_launcher(self) -> bool:
        """Whether all processes of one torchrun have the signal: its own way to end or restart.

        A user's signal may reach one process; where torchrun has one only, the two look the same. All ask
        together.
        """
        reached: dict[str | None, bool] = {}
        for agent, received in all_gather_objects((agent_id(), bool(self._received_signal()))):
            reached[agent] = reached.get(agent, True) and received
        return any(reached.values())
