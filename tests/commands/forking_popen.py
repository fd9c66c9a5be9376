"""Child interpreters that are forks of the process that starts them, with all that it has imported.

An interpreter that trains imports for six seconds. In tests, where a whole run takes one, the processes
that the package and torchrun start therefore begin as forks: everything else about them is real, from
the process id to streams, signals, process groups and exit codes.
"""

import io
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


class ForkingPopen(subprocess.Popen):
    """`subprocess.Popen`, which forks where the command is a module or script for this interpreter."""

    def _execute_child(  # as the base class calls it
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: bool,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        startupinfo: Any,
        creationflags: int,
        shell: bool,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        restore_signals: bool,
        *more: Any,
    ) -> None:
        command = _python_command(args)
        start_new_session = more[-2]
        if command is None or shell or preexec_fn or pass_fds:
            super()._execute_child(  # type: ignore[misc]
                *(args, executable, preexec_fn, close_fds, pass_fds, cwd, env),
                *(startupinfo, creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite),
                *(errread, errwrite, restore_signals, *more),
            )
            return
        streams = (p2cread, c2pwrite, errwrite)
        theirs = {p2cread, c2pwrite, errwrite} - {-1}
        ours = {p2cwrite, c2pread, errread} - {-1}

        def prepare() -> None:
            if start_new_session:
                os.setsid()
            # Out of the way first, as one of them may have the number of another's place.
            moved = [os.dup(stream) if stream != -1 else -1 for stream in streams]
            for number, stream in enumerate(moved):
                if stream != -1:
                    os.dup2(stream, number)
                    os.close(stream)
            for descriptor in ours | {stream for stream in theirs if stream > 2}:
                os.close(descriptor)
            if cwd is not None:
                os.chdir(cwd)
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            _open_standard_streams()

        # Handlers of this process must not run in the child before it has its own.
        signals = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _reset_signals()
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                run_and_exit(command, prepare)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._child_created = True
        self._close_pipe_fds(*(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite))


def _python_command(args: Any) -> list[str] | None:
    """What the interpreter is to run, `-m` and all; None where that is no module or script."""
    if isinstance(args, str | bytes | os.PathLike):
        return None
    words = [os.fspath(arg) for arg in args]
    if not words or words[0] != sys.executable:
        return None
    words = [word for word in words[1:2] if word != "-u"] + words[2:]
    is_module = words[:1] == ["-m"] and len(words) > 1
    is_script = bool(words) and words[0].endswith(".py") and Path(words[0]).is_file()
    return words if is_module or is_script else None


def _reset_signals() -> None:
    """What a fresh interpreter has."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_standard_streams() -> None:
    """Without what the parent has not flushed; it stays in the old ones, which nobody flushes here."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(number, "w", closefd=False)
        stream = io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=True)
        setattr(sys, name, stream)


def run_and_exit(command: list[str], prepare: Callable[[], None]) -> None:
    """Runs a script or `-m MODULE` with its arguments as an interpreter would, and ends this process."""
    code = 1
    try:
        prepare()
        if command[0] == "-m":
            sys.argv = command[1:]
            sys.modules.pop(command[1], None)  # or runpy warns that it is imported already
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, AttributeError):
                stream.flush()
        os._exit(code)
