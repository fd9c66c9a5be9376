"""The results of a study, read from the files of its runs."""

import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lpa.errors import LPAWarning, UserError, closest_match
from lpa.eval.perplexity import Evaluation
from lpa.storage.records import parse_value, read_json
from lpa.storage.run_directory import RESULT_FILE, SCORES_DIRECTORY
from lpa.study.design.grid import Variant
from lpa.study.design.study_index import StudyIndex, is_index, read_index
from lpa.study.execution.job import FAILURE_SUFFIX, is_divergence, is_finished, read_test
from lpa.study.results.comparison import Comparison, compare_family
from lpa.study.results.families import is_family, join_families
from lpa.study.results.statistics import A_RUN_DIVERGED, Difference, Summary
from lpa.train.logging.metrics_file import read_metrics
from lpa.train.result import RunResult


@dataclass
class VariantRow:
    """One variant: what it cost and how well it predicts.

    Attributes:
        missing: seeds without a finished run.
        failed: those of them whose last start failed, with what it said.
        perplexities: on held-out text, by seed.
        validation: mean perplexity on the validation split; None where no run has one.
        perplexity: over seeds; None where no run is finished, as all that follow.
        difference: against `baseline`; None for a baseline itself, or where no seed has both.
        verdict: what the difference says, of rivals after Holm's correction for their number; nothing where a
            run of one of the two diverged.
        tokens_per_second: over seeds.
        durations: wall time of a run in seconds, by seed.
        time: against that of `baseline`, as `difference`.
        seconds, memory_bytes: of a run, mean over seeds.
        scores: further ones that were taken of the runs, by name and seed (see `read_scores`).
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
    verdict: str | None = None
    tokens_per_second: Summary | None = None
    durations: dict[int, float] = field(default_factory=dict)
    time: Difference | None = None
    seconds: float | None = None
    memory_bytes: float | None = None
    scores: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """How many it has, finished or not."""
        return len(self.perplexities) + len(self.missing)

    @property
    def flops(self) -> float:
        return float(self.train_flops_per_token) * self.tokens

    @property
    def is_baseline(self) -> bool:
        return self.variant == self.baseline

    @property
    def diverged(self) -> bool:
        """Whether a run of it did, so that the seeds that survive decide nothing (docs/protocol.md)."""
        return self.diverged_runs > 0

    @property
    def diverged_runs(self) -> int:
        return sum(map(is_divergence, self.failed.values()))

    @property
    def is_finite(self) -> bool:
        """Whether it has a perplexity that is a number, which a model that diverged has not."""
        return self.perplexity is not None and math.isfinite(self.perplexity.mean)


@dataclass
class StudyResult:
    """A study's index, its table, the records of its runs by variant, and where all that is."""

    index: StudyIndex
    rows: list[VariantRow]
    curves: dict[str, list[list[dict[str, Any]]]]
    directories: list[Path]

    @property
    def tuned_kind(self) -> str:
        """What tuned settings go by, as messages put it before a name."""
        return "variant" if any(trial.tunes for trial in self.index.variants) else "placement"

    def compare(self) -> None:
        """Set each row's difference from its baseline, and the verdict."""
        by_name = {row.variant: row for row in self.rows}
        for row in self.rows:
            other = by_name[row.baseline]
            row.difference = row.time = None
            if not row.is_baseline:
                row.difference = Difference.between(row.perplexities, other.perplexities)
                row.time = Difference.between(row.durations, other.durations)
            row.verdict = row.difference.verdict if row.difference else None
            if not row.is_baseline and (row.diverged or other.diverged):
                row.verdict = A_RUN_DIVERGED
        if is_family(self.index):
            self._correct_verdicts(by_name[self.rows[0].baseline])

    def _correct_verdicts(self, baseline: VariantRow) -> None:
        family = [row for row in self.rows if row.baseline == baseline.variant]
        found = compare_rows(family, baseline)
        for row in family:
            if row.variant in found:
                row.verdict = found[row.variant].verdict

    @property
    def title(self) -> str:
        return f"{self.index.name} at {self.index.scale}"

    @property
    def place(self) -> str:
        """What it is and where, as messages put it first."""
        return f"{', '.join(map(str, self.directories))}: {self.title}"

    def table(self) -> dict[str, Any]:
        """The table as `lpa report --json` prints it."""
        return {
            "study": self.index.name,
            "scale": self.index.scale,
            "split": self.index.split,
            "seeds": self.index.seeds,
            "rows": [asdict(row) for row in self.rows],
        }


def compare_rows(rows: Iterable[VariantRow], baseline: VariantRow) -> dict[str, Comparison]:
    """The perplexities of variants against those of one of them, see `compare_family`, by variant."""
    others = {row.variant: row for row in rows if row is not baseline}
    return compare_family(
        {name: row.perplexities for name, row in others.items()},
        baseline.perplexities,
        {name for name, row in others.items() if row.diverged or baseline.diverged},
    )


def find_studies(directories: list[Path], baseline: str | None = None) -> list[StudyResult]:
    """All studies in the directories that `lpa study --out` named.

    Rivals of one length, over the same data and settings, are one study, whichever of the directories hold
    its arms.

    Args:
        directories: one that is named twice, in whatever words, is read once.
        baseline: compare with this variant, and leave out studies without it.

    Raises:
        UserError: a directory that holds no study, or no study that has the baseline.
    """
    if not directories:
        raise UserError("DIR: got nothing; expected the --out of `lpa study`")
    distinct = {os.path.realpath(directory): directory for directory in directories}
    indexes = [(i, [directory]) for directory in distinct.values() for i in _indexes_in(directory)]
    found = [_read_runs(index, places) for index, places in join_families(indexes)]
    return found if baseline is None else compare_with(found, baseline)


def compare_with(studies: list[StudyResult], baseline: str) -> list[StudyResult]:
    """The studies that have a variant, compared with it.

    Raises:
        UserError: none has it.
    """
    matching = [study for study in studies if any(row.variant == baseline for row in study.rows)]
    if not matching:
        names = list(dict.fromkeys(row.variant for study in studies for row in study.rows))
        near = closest_match(baseline, names) or names[:3]
        raise UserError(
            f"--baseline: got {baseline!r}; expected a variant, such as {'; '.join(near)}"
        )
    for study in matching:
        for row in study.rows:
            row.baseline = baseline
        study.compare()
    return matching


def _indexes_in(directory: Path) -> list[StudyIndex]:
    """The indexes that can be read; what is wrong with another is a warning."""
    found, problems = [], []
    for path in filter(is_index, sorted(directory.glob("*.json"))):
        try:
            found.append(read_index(path))
        except UserError as problem:
            problems.append(problem)
    if not found and problems:
        raise problems[0]
    if not found:
        raise UserError(f"DIR {directory}: holds no study; expected the --out of `lpa study`")
    for each in problems:
        warnings.warn(f"{each}; this study is left out", LPAWarning, stacklevel=2)
    return found


def read_study(index_file: Path, seeds: int | None = None) -> StudyResult:
    """The results of a study so far; of its first `seeds` alone if that is given.

    Raises:
        UserError: the index is damaged. A damaged file of a run makes that run a failed one.
    """
    index = read_index(index_file)
    if seeds is not None:
        first = [run for run in index.runs if run.seed < index.first_seed + seeds]
        index = replace(index, seeds=min(seeds, index.seeds), runs=first)
    return _read_runs(index, [index_file.parent])


def _read_runs(index: StudyIndex, directories: list[Path]) -> StudyResult:
    """The results of a study whose runs are in some directories."""
    rows, curves = [], {}
    for variant in index.variants:
        run_directories = {
            run.seed: _run_directory(run.run, directories)
            for run in index.runs
            if run.variant == variant.name
        }
        rows.append(_variant_row(variant, run_directories))
        curves[variant.name] = [_records(run) for run in run_directories.values() if run.is_dir()]
    result = StudyResult(index, rows, curves, directories)
    result.compare()
    return result


def _run_directory(name: str, directories: list[Path]) -> Path:
    """Where a run is finished; else where its failure is recorded, or where it is at work."""
    runs = [directory / "runs" / name for directory in directories]
    return max(runs, key=lambda run: (is_finished(run), _failure_file(run).is_file(), run.is_dir()))


def _failure_file(run: Path) -> Path:
    return run.parent.parent / "logs" / (run.name + FAILURE_SUFFIX)


def _records(run: Path) -> list[dict[str, Any]]:
    """Records of a run's training, without the evaluation at its end.

    That one is of the whole split, those before it may be of a part, and the step from one to the other is
    none that training made.
    """
    try:
        records = read_metrics(run)
    except UserError as problem:
        warnings.warn(f"{problem}; the curve of this run is left out", LPAWarning, stacklevel=2)
        return []
    evaluations = [i for i, record in enumerate(records) if "validation_loss" in record]
    if (run / RESULT_FILE).exists() and len(evaluations) > 1:
        del records[evaluations[-1]]
    return records


def read_scores(run: Path) -> dict[str, float]:
    """What `lpa eval perplexity --json` and `lpa eval minimal-pairs --json` printed of a run, by file name.

    Of the files `scores/NAME.json` in its directory: the accuracy where there is one, else the perplexity.

    Raises:
        UserError: a file that holds neither.
    """
    scores = {}
    for path in sorted((run / SCORES_DIRECTORY).glob("*.json")):
        fields = read_json(path, dict[str, Any])
        figure = fields.get("accuracy", fields.get("perplexity"))
        scores[path.stem] = float(parse_value(figure, float, where=path))
    return scores


def _scores(run: Path) -> dict[str, float]:
    try:
        return read_scores(run)
    except UserError as problem:
        warnings.warn(f"{problem}; the scores of this run are left out", LPAWarning, stacklevel=2)
        return {}


def _variant_row(variant: Variant, run_directories: dict[int, Path]) -> VariantRow:
    tests: dict[int, Evaluation] = {}
    by_seed: dict[int, RunResult] = {}
    failed: dict[int, str] = {}
    for seed, run in run_directories.items():
        failure = _failure_file(run)
        if is_finished(run):
            try:
                by_seed[seed], tests[seed] = RunResult.load(run), read_test(run)
            except UserError as problem:
                failed[seed] = f"{problem}; remove the file and start the study again"
        elif failure.is_file():
            failed[seed] = failure.read_text(encoding="utf-8", errors="replace").strip()
    row = VariantRow(
        variant=variant.name,
        baseline=variant.baseline,
        parameters=variant.parameters,
        train_flops_per_token=variant.train_flops_per_token,
        tokens=variant.tokens,
        match=variant.match,
        missing=[seed for seed in run_directories if seed not in tests],
        perplexities={seed: test.perplexity for seed, test in tests.items()},
        failed=failed,
    )
    for seed in by_seed:
        for name, score in _scores(run_directories[seed]).items():
            row.scores.setdefault(name, {})[seed] = score
    if by_seed:
        results = list(by_seed.values())
        validation = [r.validation.perplexity for r in results if r.validation]
        row.validation = Summary.from_values(validation).mean if validation else None
        row.perplexity = Summary.from_values(list(row.perplexities.values()))
        row.tokens_per_second = Summary.from_values([r.tokens_per_second for r in results])
        row.durations = {seed: r.wall_seconds for seed, r in by_seed.items()}
        row.seconds = Summary.from_values(list(row.durations.values())).mean
        row.memory_bytes = Summary.from_values([float(r.peak_memory_bytes) for r in results]).mean
    return row
