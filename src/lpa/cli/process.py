"""How a command behaves as a process: its standard streams, Ctrl-C, and how it ends."""

import errno
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from lpa.display.escape import escape_unprintable

# What a file system, a disk or the machine may answer, and what would help. Any other error of the operating
# system is a fault of the program and keeps its traceback.
_A_PATH = "a path that can be read and written"
_ROOM = "a disk with room for what is written"
_WORKING = "a file system that works"
_OPERATING_SYSTEM = {
    errno.EACCES: _A_PATH,
    errno.EBUSY: _A_PATH,
    errno.EEXIST: _A_PATH,
    errno.EISDIR: _A_PATH,
    errno.ELOOP: "a path without a loop of symbolic links",
    errno.ENAMETOOLONG: _A_PATH,
    errno.ENODEV: _A_PATH,
    errno.ENOENT: "a path that exists and stays while the command works",
    errno.ENOTDIR: _A_PATH,
    errno.ENOTEMPTY: "a directory that nobody else writes into",
    errno.ENXIO: _A_PATH,
    errno.EPERM: _A_PATH,
    errno.EROFS: _A_PATH,
    errno.ETXTBSY: _A_PATH,
    errno.EXDEV: "a path on the same file system",
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.ENOSPC: _ROOM,
    errno.EIO: _WORKING,
    errno.ENOLCK: "a file system with locks",
    errno.ENOTSUP: "a file system that can do this",
    errno.ENOTCONN: _WORKING,
    errno.ESTALE: _WORKING,
    errno.ETIMEDOUT: _WORKING,
    errno.EAGAIN: "fewer processes and threads, or a higher limit (ulimit -u)",
    errno.EMFILE: "fewer open files, or a higher limit (ulimit -n)",
    errno.ENFILE: "fewer open files on this machine",
    errno.ENOMEM: "more memory, or a smaller model, batch or context",
}

# The exit code after a user's mistake.
_MISTAKE = 2

# How torch, threading and pathlib say what is a MemoryError or an OSError elsewhere.
_NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "Cannot allocate memory")
_NO_THREAD = "can't start new thread"
_LINKS = "Symlink loop from"


def one_line(message: str) -> str:
    """Fold a message of several lines into one."""
    return " ".join(message.split())


def exit_with_error(message: str) -> NoReturn:
    """End the process as a user's mistake ends: one line on standard error, exit code 2."""
    print(f"lpa: error: {escape_unprintable(one_line(message))}", file=sys.stderr)
    raise SystemExit(_MISTAKE)


@contextmanager
def command_process() -> Iterator[None]:
    """Run the body as a command: what goes wrong outside the program ends it with one line, not a traceback.

    Exit codes: 2 after a user's mistake or a refusal of the operating system, 130 after Ctrl-C, 141 where
    the reader of standard output is gone, as in `lpa runs DIR | head -1`.
    """
    _prepare_streams()
    try:
        with _interrupts_between_imports(), _one_line_errors():
            try:
                yield
            finally:
                _flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        raise SystemExit(128 + signal.SIGPIPE) from None
    except SystemExit as end:
        # rich answers a broken pipe itself, and with 1.
        if isinstance(end.__context__, BrokenPipeError):
            raise SystemExit(128 + signal.SIGPIPE) from None
        if end.code == _MISTAKE and "TORCHELASTIC_RUN_ID" in os.environ:
            from lpa.train.distributed.launch import end_launch

            end_launch()  # to try again would not help
        raise
    except KeyboardInterrupt:
        # Nobody's next Ctrl-C shall hit the way out.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with suppress(OSError):
            print("lpa: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


@contextmanager
def _interrupts_between_imports() -> Iterator[None]:
    """Hold Ctrl-C back while a module is imported.

    Libraries try imports and take whatever is raised in them for the lack of a module: the interrupt would
    be lost, or half a module kept.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # as in the background
        yield
        return
    held_back = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal held_back
        held_back = _is_importing(frame)
        if not held_back:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # and see again

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        if held_back:
            raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


@contextmanager
def _one_line_errors() -> Iterator[None]:
    from lpa.errors import UserError

    try:
        yield
    except UserError as error:
        exit_with_error(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in _OPERATING_SYSTEM:
            raise
        where = f"{error.filename}: " if error.filename else ""
        exit_with_error(f"{where}{error.strerror}; expected {_OPERATING_SYSTEM[error.errno]}")
    except MemoryError as error:
        _fail_for_memory(error)
    except RuntimeError as error:
        if str(error).startswith(_LINKS):
            exit_with_error(f"{error}; expected {_OPERATING_SYSTEM[errno.ELOOP]}")
        if _NO_THREAD in str(error):
            exit_with_error(f"{_NO_THREAD}; expected {_OPERATING_SYSTEM[errno.EAGAIN]}")
        if not any(sign in str(error) for sign in _NO_MEMORY):
            raise
        _fail_for_memory(error)


def _fail_for_memory(error: Exception) -> NoReturn:
    amount = re.search(r"allocate ([\d.]+ \w+)", str(error))
    of = f" for {amount[1]} at once" if amount else ""
    exit_with_error(f"not enough memory{of}; expected {_OPERATING_SYSTEM[errno.ENOMEM]}")


def _prepare_streams() -> None:
    """A closed stream is one that nobody reads; a character that a stream cannot show is shown escaped."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Taken, or the next file that is opened gets the number and what is meant for the stream.
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _reader_is_gone() -> bool:
    """Whether a standard stream is the broken pipe; what it still holds is then dropped."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        pipe = select.poll()
        pipe.register(stream.fileno(), 0)
        if any(event & select.POLLERR for _, event in pipe.poll(0)):
            gone = True
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)
    return gone
