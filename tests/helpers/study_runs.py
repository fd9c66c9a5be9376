"""Tiny studies in separate process groups, and rivals whose perplexities follow a known law."""

import json
import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock
import pytest
from commands import CommandServer, StartedProcess

from helpers.runs import wait_until
from lpa.eval.perplexity import Evaluation
from lpa.scoring.perplexity import Perplexity, ValidationPerplexity
from lpa.storage.run_directory import RESULT_FILE, TEST_FILE
from lpa.study.design.grid import expand_grid
from lpa.study.design.study_index import StudyIndex
from lpa.study.execution.job import FAILURE_SUFFIX, Job
from lpa.study.results.study_results import StudyResult, VariantRow
from lpa.train.result import RunResult

_NOISE = {0: 1.0, 1: 1.01, 2: 0.995}  # of a seed
WORKERS = Path(__file__).parents[1] / "study" / "workers"


def start_study(
    lpa: CommandServer, out: Path, data: Path, script: str = "two_variants.py"
) -> StartedProcess:
    """A script of tests/study/workers: by default dense and LPA, two seeds each."""
    return lpa.start(WORKERS / script, out, data)


def fork_workers(lpa: CommandServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a study that this process starts are forks of the server, with all that it imported."""

    def popen(
        command: list[str], *, stdout: Any, env: dict[str, str] | None = None, **_: Any
    ) -> StartedProcess:
        return lpa.start(*command[1:], environment=env, output=Path(stdout.name))

    # The one module that all of the package starts processes by.
    monkeypatch.setattr("lpa.study.execution.process_pool.subprocess.Popen", popen)


@contextmanager
def study_to_stop(
    lpa: CommandServer, out: Path, data: Path, script: str = "two_variants.py"
) -> Iterator[StartedProcess]:
    """`start_study` for a test that ends it; whatever of its group is left then is killed."""
    process = start_study(lpa, out, data, script)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def freeze_when(condition: Callable[[], Any], process: StartedProcess) -> None:
    """Stop the whole group at a moment at which the condition holds, however slow the machine is."""

    def frozen() -> bool:
        if not condition():
            return False
        os.killpg(process.pid, signal.SIGSTOP)
        # One that has not halted yet would take the next signal before it does.
        wait_until(lambda: all(map(_is_stopped, _children(process))), process)
        if condition():
            return True
        os.killpg(process.pid, signal.SIGCONT)
        return False

    wait_until(frozen, process, timeout=300)


def terminate_frozen(process: StartedProcess) -> None:
    """SIGTERM to a frozen study, which tells its runs before any of them continues."""
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: all(map(_has_sigterm_pending, _children(process))), process)
    os.killpg(process.pid, signal.SIGCONT)


def _children(process: StartedProcess) -> list[str]:
    found = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [pid for file in found for pid in file.read_text().split()]


def _is_stopped(pid: str) -> bool:
    """Whether all threads are, or the process has ended."""
    try:
        stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # a thread has just ended
        return False
    return all(stat.rpartition(")")[2].split()[0] in "TZX" for stat in stats)


def _has_sigterm_pending(pid: str) -> bool:
    [pending] = re.findall(r"ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def is_worked_on(job: Job) -> bool:
    """Whether any process holds the lock of a run."""
    try:
        with filelock.FileLock(job.lock, timeout=0):
            return False
    except filelock.Timeout:
        return True


def finish_run(run: Path, perplexity: float) -> None:
    """Give a run the records of one that is finished."""
    scored = Perplexity(100, math.log(perplexity), perplexity, 300.0, 2.0)
    test = Evaluation(
        **asdict(scored),
        mode="blocks",
        seq_len=32,
        stride=32,
        documents=3,
        standard_error=math.nan,
        interval=(math.nan, math.nan),
        resampling_unit="documents",
    )
    validation = ValidationPerplexity(**asdict(scored))
    run.mkdir(parents=True)
    RunResult(8, 1024, 5000, 30000, 900.5, 1.5, 2.5, 2**20, validation).save(run)
    (run / TEST_FILE).write_text(json.dumps(asdict(test)))


def set_perplexity(run: Path, *, validation: float, test: float) -> None:
    """Replace what a finished run scored."""
    result = json.loads((run / RESULT_FILE).read_text())
    result["validation"]["perplexity"] = validation
    (run / RESULT_FILE).write_text(json.dumps(result))
    measured = json.loads((run / TEST_FILE).read_text())
    (run / TEST_FILE).write_text(json.dumps({**measured, "perplexity": test}))


def record_divergence(run: Path) -> None:
    """Give a finished run of a study the records of one whose loss was not a number."""
    (run / TEST_FILE).unlink()
    failure = run.parent.parent / "logs" / (run.name + FAILURE_SUFFIX)
    failure.parent.mkdir(exist_ok=True)
    failure.write_text("exit code 2: lpa: error: training: step 3: the loss is nan\n")


def rival_study(length: float, saved: float) -> StudyResult:
    """LPA has the loss that dense would have with `saved` times LPA's FLOPs."""
    grid = expand_grid("rivals", "tiny", tokens_per_parameter=length, only=["dense", "LPA"])
    index = StudyIndex(**vars(grid), seeds=3, split="test", data="", data_hashes={}, runs=[])
    rows = []
    for v in grid.variants:
        flops = float(v.train_flops_per_token) * v.tokens * (saved if v.name == "LPA" else 1)
        losses = {seed: 20 * noise * flops**-0.05 for seed, noise in _NOISE.items()}
        perplexities = {seed: math.exp(loss) for seed, loss in losses.items()}
        rows.append(
            VariantRow(
                v.name,
                v.baseline,
                v.parameters,
                v.train_flops_per_token,
                v.tokens,
                None,
                [],
                perplexities,
            )
        )
    return StudyResult(index, rows, {}, [Path(f"length-{length:g}")])
