"""Runs cases, each in a fresh copy of what it reads, and judges how they end.

The rule: the exit code is 0 or 2; no traceback; an end within 20 seconds; on 2 one line says why and nothing
was written, but for a run whose training went on until its numbers were not finite.
"""

import random
import re
import shlex
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from commands import CommandServer, Finished

from fuzz.damages import Damage, damage_cases
from fuzz.material import build
from fuzz.values import option_cases
from lpa.cli import COMMANDS
from lpa.data.verification import VERIFIED_FILE

SECONDS = 20
MEMORY = 6 * 2**30

PRELOAD = [
    *(module for module, _ in COMMANDS.values()),
    "lpa.convert.factorize",
    "lpa.convert.gguf.gguf_export",
    "lpa.convert.import_published",
    "lpa.eval.analysis.analyze",
    "lpa.eval.compare",
    "lpa.eval.glue.run_glue",
    "lpa.gguf_import",
    "lpa.study.demo.demo",
    "lpa.study.report.study_report",
    "lpa.train.dry_run",
    "datasets",
    "gguf",
    "jinja2",
    "lm_eval.evaluator",
    "matplotlib.pyplot",
    "sklearn.metrics",
    "scipy.stats",
    "tensorboard.summary.writer.record_writer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
]


@dataclass
class Case:
    """A command line, in a copy of the material in which one file may be damaged."""

    name: str
    arguments: list[str]
    file: str | None = None
    damage: Damage | None = None

    @property
    def subject(self) -> str:
        return self.file or self.name.partition("=")[0]


@dataclass
class Failure:
    """How a case broke the rule."""

    case: Case
    kind: str
    finished: Finished

    @property
    def signature(self) -> str:
        """What failures of one cause have in common: where a traceback ends, and with what."""
        lines = [line for line in self.finished.stderr.splitlines() if line.strip()]
        frames = [
            found
            for line in lines
            if (found := re.search(r'File ".*?(\w+/\w+\.py)", line (\d+)', line))
        ]
        ours = [f"{found[1]}:{found[2]}" for found in frames if "src/lpa" in found.string]
        return f"{self.kind}: {ours[-1] if ours else ''}: {lines[-1][:160] if lines else ''}"


class Fuzzer:
    """The material, a server of commands, and the cases to try.

    Args:
        folder: an empty directory to work in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # No command may need a home directory, or the network. Matplotlib would do, with many words.
        environment = {
            "HOME": "/proc/nobody",
            "MPLCONFIGDIR": str(folder),
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.lpa = CommandServer(folder, preload=PRELOAD, environment=environment)
        self.material = folder / "material"
        build(self.material, self.lpa)

    def close(self) -> None:
        self.lpa.close()

    def cases(self, seed: int) -> list[Case]:
        """All of them, in an order that the seed decides.

        Options and damages take turns, and so do the options and files among themselves: however short the
        time, each of them gets its share.
        """
        order = random.Random(seed)
        options = _in_turns([Case(*case) for case in option_cases()], order)
        damages = _in_turns([Case(*case) for case in damage_cases(self.material)], order)
        return [case for pair in zip_longest(options, damages) for case in pair if case is not None]

    def attempt(self, case: Case, deadline: float = SECONDS) -> tuple[Finished, str | None]:
        """How a case ended, and how that breaks the rule."""
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="case-") as name:
            place = Path(name) / "place"
            self.copy(place)
            if case.damage is not None and case.file is not None:
                path = place / case.file
                case.damage(path, path.read_bytes())
            before = _contents(place)
            finished = self.lpa(*case.arguments, cwd=place, deadline=deadline, memory=MEMORY)
            kind = _broken_rule(case, finished, before, _contents(place))
        # Other work may slow the machine; what takes much longer still does not hang for that reason.
        if kind == "hang" and deadline == SECONDS:
            return self.attempt(case, 4 * SECONDS)
        return finished, kind

    def copy(self, place: Path) -> None:
        """The material, and links and a file that are of no use."""
        shutil.copytree(self.material, place)
        (place / "loop").symlink_to("loop")
        (place / "dangling").symlink_to("nowhere")
        (place / "empty").touch()


def _in_turns(cases: list[Case], order: random.Random) -> list[Case]:
    """Shuffled, one of each subject (an option of a command, or a file) before the next of any."""
    subjects: dict[str, list[Case]] = {}
    for case in cases:
        subjects.setdefault(case.subject, []).append(case)
    for of_subject in subjects.values():
        order.shuffle(of_subject)
    turns = zip_longest(*order.sample(list(subjects.values()), len(subjects)))
    return [case for turn in turns for case in turn if case is not None]


def _contents(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every path with what changes when it is written, replaced or touched.

    Apart from the note that shards are intact: data that were copied are verified anew, whatever comes then.
    """
    found = {}
    for path in folder.rglob("*"):
        if path.name == VERIFIED_FILE:
            continue
        status = path.lstat()
        directory = path.is_dir() and not path.is_symlink()
        found[str(path)] = (
            status.st_ino,
            0 if directory else status.st_size,
            0 if directory else status.st_mtime_ns,
        )
    return found


def _broken_rule(
    case: Case,
    finished: Finished,
    before: dict[str, tuple[int, int, int]],
    after: dict[str, tuple[int, int, int]],
) -> str | None:
    # `lpa study` has code 1 where its runs failed, which their logs explain.
    codes = (
        (0, 1, 2) if case.arguments[0] == "study" and "lpa: failed" in finished.stderr else (0, 2)
    )
    if finished.code == 124:
        return "hang"
    if "Traceback (most recent call last)" in finished.stderr:
        return "traceback"
    if finished.code < 0:
        return "crash"
    if finished.code not in codes:
        return f"exit code {finished.code}"
    if (
        finished.code == 2
        and "lpa: error: " not in finished.stderr
        and not finished.stdout.startswith("{")
    ):
        return "no message"
    # A run that trained until its numbers were none keeps what it has.
    has_trained = "lpa: error: training: step " in finished.stderr
    if finished.code == 2 and before != after and not has_trained:
        return "written on 2"
    return None


def fuzz(
    fuzzer: Fuzzer, cases: list[Case], seconds: float
) -> Iterator[tuple[Case, Finished, str | None]]:
    """Try cases until all are done or the time is up."""
    end = time.monotonic() + seconds
    for case in cases:
        if time.monotonic() > end:
            return
        finished, kind = fuzzer.attempt(case)
        yield case, finished, kind


def summary(tried: Mapping[str, int], failures: list[Failure]) -> str:
    """Counts, and of each cause the number, an example and how to see it again."""
    lines = [
        f"{sum(tried.values()):,} cases: {', '.join(f'{n:,} {kind}' for kind, n in tried.items())}"
    ]
    if not failures:
        return "\n".join([*lines, "0 failures"])
    kinds = Counter(failure.kind for failure in failures)
    lines.append(f"{len(failures):,} failures: {', '.join(f'{n:,} {k}' for k, n in kinds.items())}")
    causes: dict[str, list[Failure]] = {}
    for failure in failures:
        causes.setdefault(failure.signature, []).append(failure)
    for signature, of_cause in sorted(causes.items(), key=lambda item: -len(item[1])):
        lines.append(f"\n{len(of_cause):>4} x {signature}")
        lines.append(f"       scripts/fuzz --only {shlex.quote(of_cause[0].case.name)}")
    return "\n".join(lines)
