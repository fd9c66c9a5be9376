"""What the runs of a study came to, read from its files."""

import json
import math
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from lpa.errors import UserError
from lpa.files import write_text
from lpa.study.runner import FAILURE_SUFFIX, TEST_FILE, is_finished
from lpa.study.statistics import Difference, Summary
from lpa.train.metrics import read_metrics
from lpa.train.result import RunResult

_PLACEMENT = "model.placement"


@dataclass
class Row:
    """One variant: what it cost and how well it predicts.

    Attributes:
        missing: seeds without a finished run.
        failed: those of them whose last start failed, with what it said.
        perplexities: on held-out text, by seed.
        validation: mean perplexity on the validation split; None where no run has one.
        perplexity: over seeds; None where no run is finished, as all that follow.
        difference: against `baseline`; None for a baseline itself, or where no seed has both.
        tokens_per_second: over seeds.
        durations: wall time of a run in seconds, by seed.
        time: against that of `baseline`, as `difference`.
        seconds, memory_bytes: of a run, mean over seeds.
    """

    variant: str
    baseline: str
    parameters: int
    train_flops_per_token: int
    tokens: int
    match: float | None
    missing: list[int]
    perplexities: dict[int, float]
    failed: dict[int, str] = field(default_factory=dict)
    validation: float | None = None
    perplexity: Summary | None = None
    difference: Difference | None = None
    tokens_per_second: Summary | None = None
    durations: dict[int, float] = field(default_factory=dict)
    time: Difference | None = None
    seconds: float | None = None
    memory_bytes: float | None = None

    @property
    def flops(self) -> float:
        return float(self.train_flops_per_token) * self.tokens

    @property
    def is_baseline(self) -> bool:
        return self.variant == self.baseline

    @property
    def is_finite(self) -> bool:
        """Whether it has a perplexity that is a number, which a model that diverged has not."""
        return self.perplexity is not None and math.isfinite(self.perplexity.mean)


@dataclass
class StudyResult:
    """A study's index, its table, and the records of its runs by variant."""

    index: dict[str, Any]
    rows: list[Row]
    curves: dict[str, list[list[dict[str, Any]]]]

    @property
    def title(self) -> str:
        return f"{self.index['name']} at {self.index['scale']}"

    def table(self) -> dict[str, Any]:
        """As `lpa report --json` prints it."""
        return {
            "study": self.index["name"],
            "scale": self.index["scale"],
            "split": self.index["split"],
            "seeds": self.index["seeds"],
            "rows": [
                asdict(row) | {"verdict": row.difference.verdict if row.difference else None}
                for row in self.rows
            ],
        }


def find_studies(directories: list[Path], baseline: str | None = None) -> list[StudyResult]:
    """All studies in the directories that `lpa study --out` named.

    Args:
        baseline: compare with this variant, and leave out studies without it.

    Raises:
        UserError: a directory that holds no study, or no study that has the baseline.
    """
    found = []
    for directory in directories:
        indices = [path for path in sorted(directory.glob("*.json")) if _is_index(path)]
        if not indices:
            raise UserError(f"DIR {directory}: holds no study; expected the --out of `lpa study`")
        found += [read_study(path) for path in indices]
    if baseline is None:
        return found
    having = [study for study in found if any(row.variant == baseline for row in study.rows)]
    if not having:
        names = list(dict.fromkeys(row.variant for study in found for row in study.rows))
        near = get_close_matches(baseline, names, cutoff=0.5) or names[:3]
        raise UserError(
            f"--baseline: got {baseline!r}; expected a variant, such as {'; '.join(near)}"
        )
    for study in having:
        for row in study.rows:
            row.baseline = baseline
        _compare(study.rows)
    return having


def read_study(index_file: Path, seeds: int | None = None) -> StudyResult:
    """The results of a study so far; of its first `seeds` alone if that is given."""
    index = json.loads(index_file.read_text())
    if seeds is not None:
        index["seeds"] = min(seeds, index["seeds"])
        index["runs"] = [run for run in index["runs"] if run["seed"] < seeds]
    runs = index_file.parent / "runs"
    rows, curves = [], {}
    for variant in index["variants"]:
        places = {
            run["seed"]: runs / run["run"]
            for run in index["runs"]
            if run["variant"] == variant["name"]
        }
        rows.append(_row(variant, places))
        curves[variant["name"]] = [_records(run) for run in places.values() if run.is_dir()]
    _compare(rows)
    return StudyResult(index, rows, curves)


def _compare(rows: list[Row]) -> None:
    """Each with its baseline."""
    by_name = {row.variant: row for row in rows}
    for row in rows:
        other = by_name[row.baseline]
        row.difference = row.time = None
        if not row.is_baseline:
            row.difference = Difference.of(row.perplexities, other.perplexities)
            row.time = Difference.of(row.durations, other.durations)


def _records(run: Path) -> list[dict[str, Any]]:
    """Of a run's training. The evaluation at its end is left out: it is of the whole split, those before it
    may be of a part, and the step from one to the other is none that training made."""
    records = read_metrics(run)
    evaluations = [i for i, record in enumerate(records) if "validation_loss" in record]
    if is_finished(run) and len(evaluations) > 1:
        del records[evaluations[-1]]
    return records


def write_tuned(result: StudyResult, path: Path) -> dict[str, dict[str, Any]]:
    """The settings of `tuned_rows` by placement, as `lpa study --tuned` reads them.

    Raises:
        UserError: a placement of which no variant has all its runs; nothing is written, as what is
            tuned would be compared with what is not.
    """
    overrides = _overrides(result)
    rows = tuned_rows(result)
    for placement in {settings[_PLACEMENT] for settings in overrides.values()} - rows.keys():
        raise UserError(
            f"{result.title}: no setting of placement {placement} has finished all its runs"
        )
    tuned = {
        placement: {k: v for k, v in overrides[row.variant].items() if k != _PLACEMENT}
        for placement, row in rows.items()
    }
    write_text(path, yaml.safe_dump(tuned, sort_keys=False))
    return tuned


def tuned_rows(result: StudyResult) -> dict[str, Row]:
    """The variant with the lowest validation perplexity by placement; the test split stays unseen.

    Only variants of which every run is finished: one that diverged with some seed is not the best.
    """
    overrides = _overrides(result)
    best: dict[str, Row] = {}
    for row in result.rows:
        placement = overrides[row.variant][_PLACEMENT]
        if row.validation is not None and math.isfinite(row.validation) and not row.missing:
            other = best.get(placement)
            if other is None or row.validation < (other.validation or math.inf):
                best[placement] = row
    return best


def short_axes(result: StudyResult) -> list[tuple[str, str, float]]:
    """Placement, field and value of each tuned setting at the end of an axis of three values or more."""
    overrides = _overrides(result)
    measured = [overrides[row.variant] for row in result.rows if row.validation is not None]
    found = []
    for placement, row in tuned_rows(result).items():
        for name, value in overrides[row.variant].items():
            tried = {settings[name] for settings in measured if settings[_PLACEMENT] == placement}
            if name != _PLACEMENT and len(tried) > 2 and value in (min(tried), max(tried)):
                found.append((placement, name, value))
    return found


def _overrides(result: StudyResult) -> dict[str, dict[str, Any]]:
    return {variant["name"]: variant["overrides"] for variant in result.index["variants"]}


def _row(variant: dict[str, Any], places: dict[int, Path]) -> Row:
    done = {seed: run for seed, run in places.items() if is_finished(run)}
    failures = {
        seed: run.parent.parent / "logs" / (run.name + FAILURE_SUFFIX)
        for seed, run in places.items()
    }
    tests = {seed: json.loads((run / TEST_FILE).read_text()) for seed, run in done.items()}
    row = Row(
        variant=variant["name"],
        baseline=variant["baseline"],
        parameters=variant["parameters"],
        train_flops_per_token=variant["train_flops_per_token"],
        tokens=variant["tokens"],
        match=variant["match"],
        missing=[seed for seed in places if seed not in done],
        perplexities={seed: test["perplexity"] for seed, test in tests.items()},
        failed={
            seed: failure.read_text(encoding="utf-8").strip()
            for seed, failure in failures.items()
            if seed not in done and failure.exists()
        },
    )
    if done:
        by_seed = {seed: RunResult.load(run) for seed, run in done.items()}
        results = list(by_seed.values())
        held_out = [r.validation.perplexity for r in results if r.validation]
        row.validation = Summary.of(held_out).mean if held_out else None
        row.perplexity = Summary.of(list(row.perplexities.values()))
        row.tokens_per_second = Summary.of([r.tokens_per_second for r in results])
        row.durations = {seed: r.wall_seconds for seed, r in by_seed.items()}
        row.seconds = Summary.of(list(row.durations.values())).mean
        row.memory_bytes = Summary.of([float(r.peak_memory_bytes) for r in results]).mean
    return row


def _is_index(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return False
    return isinstance(content, dict) and {"variants", "runs", "question"} <= content.keys()
