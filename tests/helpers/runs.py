"""Training runs in tests: started by torchrun, read back, compared."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from commands import CommandServer, StartedProcess
from safetensors.torch import load_file

from lpa.train.logging.metrics_file import read_metrics


@dataclass
class Launched:
    """Processes that torchrun started."""

    process: StartedProcess

    def finish(self, timeout: float = 180) -> tuple[int, str]:
        """Exit code and all that was printed."""
        output, _ = self.process.communicate(timeout=timeout)
        assert self.process.returncode is not None
        return self.process.returncode, output

    def workers(self) -> list[int]:
        """The ids of the processes that torchrun started, by rank: it starts one after the other."""
        return sorted(_children_of(self.process.pid))


def _children_of(process: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):  # no process, or it ended meanwhile
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(entry.name))
    return found


def torchrun(
    lpa: CommandServer,
    processes: int,
    *arguments: object,
    options: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Launched:
    """`torchrun … -m lpa train …`, all of whose processes are forks."""
    command = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *options]
    return Launched(lpa.start(*command, "-m", "lpa", *arguments, environment=environment))


def wait_until(
    condition: Callable[[], Any], process: subprocess.Popen | StartedProcess, timeout: float = 90
) -> Any:
    """Wait for a condition while a process is at work; what the condition gave."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert process.poll() is None, process.stdout.read() if process.stdout else "ended"
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.002)
    return value


def untimed_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run without what measures the machine."""
    measured = ("_second", "_seconds", "_bytes")
    return [
        {key: value for key, value in record.items() if not key.endswith(measured)}
        for record in read_metrics(run)
    ]


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final/model.safetensors")


def assert_same_weights(run: Path, other: Path) -> None:
    """Bit for bit."""
    ours, theirs = final_weights(run), final_weights(other)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


def stop_all(*launches: Launched) -> None:
    """End what a failed test left running."""
    for launched in launches:
        if launched.process.poll() is None:
            for pid in launched.workers():
                os.kill(pid, signal.SIGKILL)
            launched.process.kill()
            launched.process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return False
    return True
