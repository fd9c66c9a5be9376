"""The launch that this process belongs to: which it is, what it has worked on, and how it ends.

torchrun gives no identity to a launch. Its rendezvous id is chosen by the user, who may use it twice,
and its count of restarts differs between nodes once one has left. What tells launches apart is their
agents: the torchrun processes, one per node, which outlive the processes that they restart. A process
belongs to the launch that worked on a run before, if any agent that is present now was present then.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

_RUN_ID = "TORCHELASTIC_RUN_ID"
# How long the first process of a node leaves the others for their messages, before it ends the launch,
# and how long these wait for that. If they ended first, torchrun would restart all.
_LEADER_SECONDS, _OTHER_SECONDS = 1.0, 3.0
_POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def agent_id() -> str | None:
    """The identity of the torchrun process that started this one, never that of another; None without."""
    pid = _agent_pid()
    if pid is None:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id")
    boot_id = boot.read_text().strip() if boot.exists() else ""
    return f"{socket.gethostname()}/{boot_id}/{pid}/{_start_time(pid)}"


def _agent_pid() -> int | None:
    """The nearest ancestor that torchrun did not start: wrappers may lie between a worker and its agent."""
    if _RUN_ID not in os.environ:
        return None
    pid = os.getppid()
    while _is_worker(pid):
        pid = int(_stat(pid)[1])
    return pid


def _is_worker(pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # no /proc, or the process of another user
        return False
    return any(item.startswith(f"{_RUN_ID}=".encode()) for item in environment)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _start_time(pid: int) -> str:
    if Path("/proc/self/stat").exists():
        return _stat(pid)[19]
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def end_with_agent() -> None:
    """Let the system kill this process when torchrun dies; else it would keep its device to itself."""
    if sys.platform != "linux" or _RUN_ID not in os.environ:
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def agree_on_generation(store: "Store", rank: int, size: int, *, timeout: float) -> str:
    """A name that the processes which start together share, and no process that was started before has.

    torchrun may keep one store over its restarts, in which the addresses of dead processes remain. Rank 0
    draws the name and answers to each process separately; the name counts once all have received it. What
    dead processes left in the store is overwritten or never read.

    Raises:
        RuntimeError: not all processes came within `timeout` seconds.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + timeout
    if rank == 0:
        missing = list(range(1, size))
        while missing:
            for other in missing:
                if store.check([f"lpa/hello/{other}"]):
                    store.set(f"lpa/{store.get(f'lpa/hello/{other}').decode()}", own)
            missing = [other for other in missing if not store.check([f"lpa/{own}/{other}"])]
            _wait(deadline, f"ranks {missing} have not come")
        store.set(f"lpa/{own}/complete", "")
        return own
    store.set(f"lpa/hello/{rank}", own)
    generation = ""
    while not generation or not store.check([f"lpa/{generation}/complete"]):
        if store.check([f"lpa/{own}"]):
            generation = store.get(f"lpa/{own}").decode()
            store.set(f"lpa/{generation}/{rank}", "")
        _wait(deadline, "rank 0 has not answered")
    return generation


def _wait(deadline: float, message: str) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(f"the processes of the run did not find each other in time: {message}")
    time.sleep(_POLL_SECONDS)


def may_restart() -> bool:
    """Whether torchrun would restart this process if it failed now."""
    count = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return count < int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def end_launch() -> None:
    """Tell torchrun to end, where it would start again what has ended on purpose."""
    agent = _agent_pid()
    if agent is not None and may_restart():
        is_leader = os.environ.get("LOCAL_RANK", "0") == "0"
        time.sleep(_LEADER_SECONDS if is_leader else _OTHER_SECONDS)
        os.kill(agent, signal.SIGTERM)
