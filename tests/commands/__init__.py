"""The command line in its own processes, forked from one that has imported everything."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# A model and a run so small that a step takes milliseconds.
TINY = [
    *("--data.seq_len", "32"),
    *("--model.hidden_size", "32", "--model.intermediate_size", "64"),
    *("--model.num_hidden_layers", "2", "--model.num_attention_heads", "2", "--model.rank", "8"),
    *("--train.batch_size", "4", "--train.threads", "1", "--train.device", "cpu"),
    *("--optim.warmup_steps", "2"),
]


@dataclass
class Finished:
    """How a command ended; 124 is the code of one that outlived its deadline."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class StartedProcess:
    """A process that the server started and nobody waits for, as `subprocess.Popen` shows its own.

    It leads its session. Both of its streams are `stdout`, unless they go to a file of the caller.
    """

    def __init__(self, pid: int, exit_file: Path, output: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._exit_file = exit_file
        self._output = output

    @property
    def stdout(self) -> IO[str]:
        """All that it has printed so far."""
        return io.StringIO(self._output.read_text(errors="replace"))

    def poll(self) -> int | None:
        if self.returncode is None and self._exit_file.exists():
            self.returncode = int(self._exit_file.read_text())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (600 if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 600)
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self.stdout.read(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class CommandServer:
    """See command_server.py.

    Args:
        folder: for what commands print.
        preload: modules to import beforehand, beside those that most commands need.
        elsewhere: neither this package nor transformers is imported beforehand, only what they need.
        environment: what differs for all commands.
    """

    def __init__(
        self,
        folder: Path,
        *,
        preload: Iterable[str] = (),
        elsewhere: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [
                *(sys.executable, Path(__file__).with_name("command_server.py")),
                *(["--elsewhere"] if elsewhere else preload),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(environment or {})},
        )

    def __call__(
        self,
        *arguments: object,
        script: Path | None = None,
        processes: int = 0,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        stdout: str | None = None,
        deadline: float = 600,
        memory: int | None = None,
    ) -> Finished:
        """Run a command, or a script as so many ranks.

        Args:
            environment: what differs; PYTHONIOENCODING is heeded.
            stdout: `closed`, or `broken`: a pipe whose reader is gone; None: read here.
            deadline: seconds.
            memory: bytes that a process may allocate.
        """
        files = self._folder / "stdout", self._folder / "stderr"
        for file in files:
            file.write_bytes(b"")
        words = list(map(str, arguments))
        code = self._ask(
            script=script and str(script),
            processes=processes,
            arguments=words if script else ["-m", "lpa", *words],
            cwd=str(cwd or Path.cwd()),
            stdout=stdout or str(files[0]),
            stderr=str(files[1]),
            environment=dict(environment or {}),
            deadline=deadline,
            memory=memory,
        )
        return Finished(
            code, *(file.read_text(encoding="utf-8", errors="replace") for file in files)
        )

    def start(
        self,
        *arguments: object,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        output: Path | None = None,
    ) -> StartedProcess:
        """Start `python ARGUMENTS…`, a module or a script, and go on.

        Args:
            environment: what differs.
            output: the file to which both streams are appended.
        """
        number = next(self._numbers)
        exit_file = self._folder / f"exit-{number}"
        output = output or self._folder / f"output-{number}"
        output.touch()
        words = list(map(str, arguments))
        pid = self._ask(
            exit_file=str(exit_file),
            script=None,
            arguments=words,
            cwd=str(cwd or Path.cwd()),
            stdout=str(output),
            stderr=str(output),
            environment=dict(environment or {}),
            memory=None,
        )
        return StartedProcess(pid, exit_file, output)

    def _ask(self, **request: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
