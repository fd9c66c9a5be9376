"""Runs the command line, or the ranks of a script, in processes that need not import everything anew.

Started once for each test process. It imports what commands import, and for every line of JSON on its
standard input it forks: the child is the command, with standard streams, environment and working folder
as the line says. It computes nothing itself, so that a child starts as a fresh interpreter would, only
seconds sooner. What takes longer than its deadline, such as ranks that wait for each other, is killed
with all that it started and has code 124.
"""

import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import sys
import traceback
from contextlib import suppress

PRELOADED = [
    "lpa.convert.merge",
    "lpa.data.preparation.prepare",
    "lpa.eval.generate",
    "lpa.eval.perplexity",
    "lpa.study.bench.benchmark",
    "lpa.train.run",
]


def main() -> None:
    for name in [*PRELOADED, *sys.argv[1:]]:
        importlib.import_module(name)
    # Or each child's first collection would copy all of memory.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        processes, deadline = request.pop("processes"), request.pop("deadline")
        ranks = _ranks(processes) if processes else [{}]
        children: list[int] = []
        try:
            for environment in ranks:
                children.append(os.fork())
                if children[-1] == 0:
                    os.setpgid(0, 0)
                    request["environment"] |= environment
                    _be_the_process(**request)
            print(_wait(children, deadline), flush=True)
        finally:
            _kill(children)


def _ranks(processes: int) -> list[dict[str, str]]:
    """The environment that torchrun would give to each of so many processes of one machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    return [{"RANK": str(n), "LOCAL_RANK": str(n), **together} for n in range(processes)]


def _wait(children: list[int], deadline: float) -> int:
    """The first exit code that is not 0; the others are then killed, as they may wait for the one lost."""
    code = 0

    def give_up(*_: object) -> None:
        nonlocal code
        code = code or 124
        _kill(children)

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, deadline)
    while children:
        pid, status = os.wait()
        children.remove(pid)
        _kill([pid])  # what it left behind
        if status and not code:
            code = os.waitstatus_to_exitcode(status)
            _kill(children)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the next children inherit it
    return code


def _kill(children: list[int]) -> None:
    """Processes with all that they started."""
    for child in children:
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(child, signal.SIGKILL)


def _be_the_process(
    script: str | None,
    arguments: list[str],
    cwd: str,
    stdout: str,
    stderr: str,
    environment: dict[str, str],
    memory: int | None,
) -> None:
    """The script, or without one the command line; never returns."""
    from lpa.cli import main as lpa

    code = 1
    try:
        os.chdir(cwd)
        os.environ.update(environment)
        _open_streams(stdout, stderr)
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        sys.argv = [script or "lpa", *arguments]
        if script:
            runpy.run_path(script, run_name="__main__")
        else:
            lpa()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


def _open_streams(stdout: str, stderr: str) -> None:
    """What the interpreter makes of its first three descriptors at its start."""
    files = {0: os.devnull, 2: stderr}
    if stdout == "closed":
        os.close(1)
        sys.stdout = None
    elif stdout == "broken":
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(writer)
        os.close(reader)
    else:
        files[1] = stdout
    for number, path in files.items():
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(descriptor, number)
        if descriptor != number:
            os.close(descriptor)
    encoding = os.environ.get("PYTHONIOENCODING")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and encoding:
            stream.reconfigure(encoding=encoding)


if __name__ == "__main__":
    main()
