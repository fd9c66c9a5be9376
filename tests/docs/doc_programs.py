"""The programs that bash blocks of the documents call, at a size that a test can pay for.

- `lpa` is the real command line. Options are appended so that it takes a moment
  (`scaled_down`); `lpa demo` and `lpa bench` are only parsed.
- `torchrun` is parsed by torch's parser, and what it starts runs in two processes with gloo.
- `pip install` is checked against the extras of pyproject.toml, `make` against the Makefile.
- `srun` and `scontrol` stand for Slurm, which is not here.
"""

import argparse
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

from commands import TINY, Finished
from doc_markdown import ROOT

PROGRAMS = ("lpa", "torchrun", "python", "python3", "pip", "make", "srun", "scontrol")

# A run of a moment: a tiny model in one device's layout, whatever the recipe says.
_SAMPLES = ["--data.seq_len", "64"]
_RUN = [
    *("--train.batch_size", "4", "--train.device", "cpu"),
    *("--train.steps", "4", "--train.tokens", "null", "--train.batch_tokens", "null"),
    *("--train.micro_batch_size", "null", "--train.eval_tokens", "500", "--train.compile", "false"),
    *("--train.dtype", "float32", "--train.threads", "1", "--optim.warmup_steps", "2"),
    *("--parallel.shard", "null"),
]
_MODEL = ["--model.preset", "nano", *TINY]


class Programs:
    """Answers a call of a program by a block.

    Args:
        lpa: the command line in its own process.
    """

    def __init__(self, lpa: Callable[..., Finished]) -> None:
        self._lpa = lpa
        self.parse_only = False
        self._launched: set[tuple[str, ...]] = set()

    def __call__(self, program: str, arguments: list[str], cwd: Path) -> Finished:
        answer = {
            "lpa": self._run_lpa,
            "torchrun": self._torchrun,
            "python": self._python,
            "python3": self._python,
            "pip": self._pip,
            "make": self._make,
            "srun": lambda words, cwd: self(words[0], words[1:], cwd),
            "scontrol": lambda words, cwd: Finished(0, "node1\nnode2\n", ""),
        }[program]
        return answer(arguments, cwd)

    def _run_lpa(self, arguments: list[str], cwd: Path, processes: int = 0) -> Finished:
        if self.parse_only or arguments[0] in ("demo", "bench"):
            return self._parse("lpa", arguments, cwd)
        return self._lpa(*scaled_down(arguments), cwd=cwd, processes=processes, deadline=60)

    def _parse(self, program: str, arguments: list[str], cwd: Path) -> Finished:
        script = Path(__file__).with_name("parse_only.py")
        return self._lpa(program, *arguments, script=script, cwd=cwd, deadline=60)

    def _torchrun(self, arguments: list[str], cwd: Path) -> Finished:
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args(arguments)
        if parsed.module:
            assert parsed.training_script == "lpa", parsed
            planned = self._plan(parsed, cwd)
            return self._launch(parsed.training_script_args, cwd) if planned.code == 0 else planned
        return self._python([parsed.training_script, *parsed.training_script_args], cwd)

    def _plan(self, parsed: argparse.Namespace, cwd: Path) -> Finished:
        """The dry run of a training in as many processes as torchrun would start, at its full size."""
        processes = int(parsed.nnodes.split(":")[-1]) * int(parsed.nproc_per_node)
        kept = [word for word in parsed.training_script_args if word != "--resume"]
        return self._lpa(*kept, "--dry-run", "--processes", processes, cwd=cwd)

    def _launch(self, arguments: list[str], cwd: Path) -> Finished:
        """One that differs from an earlier one in its run directory alone is parsed."""
        at = arguments.index("--out")
        launch = (*arguments[:at], *arguments[at + 2 :])
        if launch in self._launched:
            return self._parse("lpa", arguments, cwd)
        self._launched.add(launch)
        return self._run_lpa(arguments, cwd, processes=2)

    def _python(self, arguments: list[str], cwd: Path) -> Finished:
        script, *rest = arguments
        if self.parse_only:
            return self._parse(script, rest, cwd)
        return self._lpa(*rest, script=Path(script), cwd=cwd, deadline=60)

    @staticmethod
    def _pip(arguments: list[str], cwd: Path) -> Finished:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        known = set(extras["optional-dependencies"])
        verb, *packages = arguments
        for package in packages:
            named = re.fullmatch(r"lpa\[([\w,]+)\]", package)
            if verb != "install" or not named or not set(named[1].split(",")) <= known:
                return Finished(1, "", f"pip {verb} {package}: no such extra")
        return Finished(0, "", "")

    @staticmethod
    def _make(arguments: list[str], cwd: Path) -> Finished:
        done = subprocess.run(
            ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return Finished(done.returncode, done.stdout, done.stderr)


def scaled_down(arguments: list[str]) -> list[str]:
    """The arguments of `lpa` with options appended that make it take a moment."""
    match arguments:
        case ["train", *rest] if not {"--dry-run", "--print_config"} & set(rest):
            healing = any(word == "--model.from" for word in rest)
            return [*arguments, *([] if healing else [*_MODEL, *_SAMPLES]), *_RUN]
        case ["study", *rest] if "--dry-run" not in rest:
            return [*arguments, "--dry-run"]
        case ["generate", *_]:
            return [*arguments, "--max-new-tokens", "8"]
    return arguments
