"""Bash with programs that are answered by a function of the test."""

import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from commands import Finished

# What stands for each program on the path: it sends its call to the test and does as it is answered.
_CLIENT = """\
#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    call = {{"program": os.path.basename(sys.argv[0]), "arguments": sys.argv[1:], "cwd": os.getcwd()}}
    link.sendall(json.dumps(call).encode() + b"\\n")
    answer = json.loads(link.makefile().readline())
sys.stdout.write(answer["stdout"])
sys.stderr.write(answer["stderr"])
sys.exit(answer["code"])
"""


class Shell:
    """Runs code, one piece at a time.

    Args:
        folder: for the programs and the socket.
        programs: names that are answered.
        answer: from a program, its arguments and its folder to how it ended.
        environment: what differs.
    """

    def __init__(
        self,
        folder: Path,
        programs: tuple[str, ...],
        answer: Callable[[str, list[str], Path], Finished],
        environment: Mapping[str, str],
    ) -> None:
        self._environment = environment
        self.bin = folder / "bin"
        self.bin.mkdir()
        address = str(folder / "socket")

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                call = json.loads(self.rfile.readline())
                try:
                    done = answer(call["program"], call["arguments"], Path(call["cwd"]))
                except BaseException as error:  # the code must end, and say why
                    done = Finished(70, "", f"{type(error).__name__}: {error}")
                self.wfile.write(json.dumps(vars(done)).encode() + b"\n")

        self._server = socketserver.UnixStreamServer(address, Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        client = _CLIENT.format(python=sys.executable, address=address)
        for name in programs:
            (self.bin / name).write_text(client)
            (self.bin / name).chmod(0o755)

    def run(self, code: str, cwd: Path) -> Finished:
        """How the code ended; the first command that fails ends it."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=cwd,
            env={
                **os.environ,
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                **self._environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
