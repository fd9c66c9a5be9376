"""The processes of a study that run at a time, and what each has of the machine."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@contextmanager
def stop_signals(handler: Callable[..., None]) -> Iterator[None]:
    """SIGINT and SIGTERM go to a handler while in this context; in the main thread, the only one that may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@dataclass(frozen=True)
class Slot:
    """What one of several runs at a time has of the machine.

    Attributes:
        cores: reserved for it; empty where there are fewer cores than runs, which then share them all.
        gpu: the one that it sees, as CUDA_VISIBLE_DEVICES names it; None where there is none.
    """

    cores: list[int]
    gpu: str | None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process keeps to it."""
        threads = {"OMP_NUM_THREADS": str(max(1, len(self.cores)))}
        return threads if self.gpu is None else {**threads, "CUDA_VISIBLE_DEVICES": self.gpu}


def make_slots(parallel: int, cores: list[int], gpus: list[str]) -> list[Slot]:
    """So many slots. More runs than GPUs share these in turn."""
    cores_per_slot = len(cores) // parallel
    return [
        Slot(
            cores[i * cores_per_slot : (i + 1) * cores_per_slot],
            gpus[i % len(gpus)] if gpus else None,
        )
        for i in range(parallel)
    ]


def visible_gpus() -> list[str]:
    """The names of the GPUs that this process may use."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (given.split(",") if given else [str(i) for i in range(count)])[:count]


class Pool:
    """The processes at work, and what is free for the next."""

    def __init__(self, parallel: int) -> None:
        self.stopping = threading.Event()
        self.interrupted = False
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._free = make_slots(parallel, cores, visible_gpus())

    def call(self, command: list[str], log: Path, slot: Slot) -> int:
        """Run a command in a slot, its output appended to the log; its exit code."""
        with self._lock, open(log, "ab") as output:
            if self.stopping.is_set():
                return 1
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **slot.environment},
            )
            self._running.add(process)
            if self.stopping.is_set():  # `stop` came while the process was being made
                process.terminate()
        if slot.cores:
            with suppress(ProcessLookupError):  # it may have ended already
                os.sched_setaffinity(process.pid, slot.cores)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        return code

    def stop(self) -> None:
        """Begin nothing more. The processes take note once, and end with a checkpoint."""
        self.stopping.set()
        for process in list(self._running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def interrupt(self, *_: Any) -> None:
        """`stop`, as the handler of a signal."""
        self.interrupted = True
        self.stop()

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """One that is free; as many threads may be in it as there are slots."""
        slot = self._free.pop()
        try:
            yield slot
        finally:
            self._free.append(slot)
