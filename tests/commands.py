"""The command line in its own processes, forked from one that has imported everything."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Finished:
    """How a command ended; 124 is the code of one that outlived its deadline."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class CommandServer:
    """See command_server.py.

    Args:
        folder: for what commands print.
        preload: modules to import beforehand, beside those that most commands need.
        environment: what differs for all commands.
    """

    def __init__(
        self,
        folder: Path,
        *,
        preload: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("command_server.py"), *preload],
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
        request = {
            "script": script and str(script),
            "processes": processes,
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or Path.cwd()),
            "stdout": stdout or str(files[0]),
            "stderr": str(files[1]),
            "environment": dict(environment or {}),
            "deadline": deadline,
            "memory": memory,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        return Finished(
            code, *(file.read_text(encoding="utf-8", errors="replace") for file in files)
        )

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
