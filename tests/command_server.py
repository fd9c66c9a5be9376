"""Runs the command line, or the ranks of a script, in processes that need not import everything anew.

Started once for each test process. It imports what commands import, and for every line of JSON on its
standard input it forks: the child is the command, with its own standard streams and working folder. It
computes nothing itself, so that a child starts as a fresh interpreter would, only seconds sooner. What
takes longer than DEADLINE seconds, such as ranks that wait for each other, is killed and has code 124.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from contextlib import suppress

DEADLINE = 600

PRELOADED = [
    "lpa.convert.merge",
    "lpa.data.preparation",
    "lpa.eval.generation",
    "lpa.eval.perplexity",
    "lpa.study.bench",
    "lpa.train.run",
]


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        processes = request.pop("processes")
        ranks = _ranks(processes) if processes else [{}]
        children = []
        for environment in ranks:
            children.append(os.fork())
            if children[-1] == 0:
                os.environ |= environment
                _be_the_process(**request)
        print(_wait(children), flush=True)


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


def _wait(children: list[int]) -> int:
    """The first exit code that is not 0; the others are then killed, as they may wait for the one lost."""
    code = 0

    def give_up(*_: object) -> None:
        nonlocal code
        code = code or 124
        _kill(children)

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(DEADLINE)
    while children:
        pid, status = os.wait()
        children.remove(pid)
        if status and not code:
            code = os.waitstatus_to_exitcode(status)
            _kill(children)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the next children inherit it
    return code


def _kill(children: list[int]) -> None:
    for child in children:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(child, signal.SIGKILL)


def _be_the_process(
    script: str | None, arguments: list[str], cwd: str, stdout: str, stderr: str
) -> None:
    """The script, or without one the command line; never returns."""
    from lpa.cli import main as lpa

    code = 1
    try:
        os.chdir(cwd)
        for descriptor, path in ((0, os.devnull), (1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), descriptor)
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
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
