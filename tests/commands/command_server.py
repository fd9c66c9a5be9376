"""Runs the command line, or the ranks of a script, in processes that need not import everything anew.

Started once for each test process. It imports what commands import, or with `--elsewhere` what programs
import that may not have this package, and for every line of JSON on its standard input it forks: the
child is the command, with standard streams, environment and working folder as the line says. It computes
no tensor itself, so that a child starts as a fresh interpreter would, only seconds sooner. The
interpreters that a child starts are forks of the child in the same way: see `forking_popen.py`.

The server waits for a command, kills with all that it started what takes longer than its deadline, such
as ranks that wait for each other, and answers with the exit code (124 for those killed). Or it answers
with the process id at once, and writes the exit code to a file when the process has ended.
"""

import gc
import importlib
import inspect
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from forking_popen import ForkingPopen, run_and_exit

# Before anything else is imported, as modules may keep the name.
subprocess.Popen = ForkingPopen

PRELOADED = [
    "attrs",
    "docstring_parser",
    "encodings.utf_8_sig",
    "fsspec",
    "lpa.cli.train",
    "lpa.convert.factorize",
    "lpa.convert.merge",
    "lpa.data.preparation.prepare",
    "lpa.eval.analysis.analyze",
    "lpa.eval.compare",
    "lpa.eval.generate",
    "lpa.eval.perplexity",
    "lpa.study.bench.benchmark",
    "lpa.study.execution.run_worker",
    "lpa.study.report.study_report",
    "lpa.train.run",
    "lpa.train.config.recipe",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "mpl_toolkits.mplot3d",
    "pydantic.dataclasses",
    "pydantic.type_adapter",
    "rich._emoji_codes",
    "torch.distributed.elastic.rendezvous.dynamic_rendezvous",
    "torch.distributed.run",
    "tensorboard.summary.writer.record_writer",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "zoneinfo",
]

# What this package and transformers import, neither of which is imported itself.
THIRD_PARTIES = [
    "PIL.Image",
    "accelerate",
    "huggingface_hub",
    "numpy",
    "safetensors.torch",
    "scipy.optimize",
    "sentencepiece",
    "tokenizers",
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.fx",
    "torch.nn.attention.flex_attention",
    "torch.utils.checkpoint",
]

# The processes that nobody waits for, and where to write their exit codes.
_detached: dict[int, Path] = {}


def main() -> None:
    if sys.argv[1:] == ["--elsewhere"]:
        _preload(THIRD_PARTIES)
        assert not {"lpa", "transformers"} & set(sys.modules)
    else:
        _preload([*PRELOADED, *sys.argv[1:]])
        _fill_caches()
    inspect.stack = _stack_without_sources
    # Or each child's first collection would copy all of memory.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, lambda *_: _note_ended())
    for line in sys.stdin:
        request = json.loads(line)
        if exit_file := request.pop("exit_file", None):
            print(_start(exit_file, **request), flush=True)
            continue
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


def _preload(modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)


def _fill_caches() -> None:
    """The schemas of the files that most commands read, and the code that models are saved with."""
    from lpa.data.manifest import Manifest
    from lpa.errors import UserError
    from lpa.model.hub.remote_code import low_rank_code, lpa_code
    from lpa.storage.outputs import Marker
    from lpa.storage.records import parse_value
    from lpa.train.result import RunResult

    for kind in (dict[str, Any], dict[str, dict[str, Any]], Manifest, Marker, RunResult):
        with suppress(UserError):
            parse_value(None, kind)
    lpa_code()
    low_rank_code()


def _stack_without_sources(context: int = 1) -> list[inspect.FrameInfo]:
    """`inspect.stack`, which torchrun calls with each event and which searches all modules every time."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        where = (code.co_filename, frame.f_lineno, code.co_name)
        frames.append(inspect.FrameInfo(frame, *where, None, None))
        frame = frame.f_back
    return frames


def _start(exit_file: str, **request: Any) -> int:
    """Starts a process that leads its session; its id."""
    child = os.fork()
    if child == 0:
        os.setsid()
        _be_the_process(**request)
    _detached[child] = Path(exit_file)
    _note_ended()  # it may have ended before the last line
    return child


def _note_ended() -> None:
    """Writes the exit codes of the detached processes that have ended."""
    for child in list(_detached):
        with suppress(ChildProcessError):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                _write_code(child, status)


def _write_code(child: int, status: int) -> None:
    file = _detached.pop(child)
    partial = file.with_suffix(".partial")
    partial.write_text(str(os.waitstatus_to_exitcode(status)))
    partial.replace(file)


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
        if pid in _detached:
            _write_code(pid, status)
            continue
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
    """The script, or without one the module that the arguments begin with; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def prepare() -> None:
        os.chdir(cwd)
        os.environ.update(environment)
        _open_streams(stdout, stderr)
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))

    run_and_exit([script, *arguments] if script else arguments, prepare)


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
