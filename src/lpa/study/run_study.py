"""A study, from its name to its finished runs and the settings that they chose."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lpa.data.manifest import Manifest
from lpa.data.tokenizer import verify_tokenizer
from lpa.errors import UserError
from lpa.storage.locks import lock_directory
from lpa.storage.outputs import resolve_output
from lpa.study.bundled_data import prepare_bundled_for_scale
from lpa.study.design.grid import Study, expand_grid
from lpa.study.design.grid_files import tuned_names
from lpa.study.design.study_index import TUNING_SUFFIX, index_path, recorded_dtype
from lpa.study.design.tuned_settings import read_tuned
from lpa.study.execution.job import Job
from lpa.study.execution.job_runner import create_jobs, run_jobs
from lpa.study.rates.rate_tuning import (
    best_rates,
    extend_rates,
    first_rates,
    tried_rates,
    tune_learning_rates,
)
from lpa.study.results.study_results import read_study
from lpa.study.results.tuning_results import lost_trials, short_axes, write_tuned

OnState = Callable[[Job, str, int, int], None]


@dataclass
class StudyOutcome:
    """What the runs of a study ended with.

    Attributes:
        study: the grid; where learning rates were tuned, the one with the last trials.
        failed: the jobs of the runs that failed, those that diverged in an earlier start among them.
        tuned: placement or variant -> the settings chosen for it; None where the study tunes nothing, or
            where runs that failed leave nothing to choose from.
        tuned_file: the file that holds them, which further studies take as `tuned`.
        problem: why nothing was chosen, in a study that tunes.
        short_axes: placement or variant, field and value of each choice at the end of what was tried.
    """

    study: Study
    failed: list[Job]
    tuned: dict[str, dict[str, Any]] | None = None
    tuned_file: Path | None = None
    problem: str | None = None
    short_axes: list[tuple[str, str, float]] = field(default_factory=list)


def plan_study(
    name: str,
    *,
    scale: str = "nano",
    out: Path | None = None,
    data: Path | None = None,
    steps: int | None = None,
    tokens_per_parameter: float | None = None,
    variants: Sequence[str] = (),
    tune: bool = False,
    tuned: Path | None = None,
) -> Study:
    """The grid of a study with its costs; the arguments are those of `run_study`, and nothing is written.

    Raises:
        UserError: an argument that is not accepted, or that does not go with another.
    """
    manifest = None if data is None else _load_manifest(Path(data))
    study = _expand(name, scale, out, manifest, steps, tokens_per_parameter, variants, tune, tuned)
    return tune_learning_rates(study, first_rates(study)) if tune else study


def run_study(
    name: str,
    out: str | Path,
    *,
    scale: str = "nano",
    seeds: int = 3,
    jobs: int = 1,
    data: str | Path | None = None,
    steps: int | None = None,
    tokens_per_parameter: float | None = None,
    variants: str | Sequence[str] = (),
    tune: bool = False,
    tuned: str | Path | None = None,
    executor: str = "local",
    slurm: Mapping[str, int | str] | None = None,
    on_start: Callable[[Study], None] = lambda study: None,
    on_state: OnState = lambda job, state, done, total: None,
) -> StudyOutcome:
    """Runs an experiment of the paper at a scale. Runs that are finished or diverged are never repeated.

    Args:
        name: of the study, such as `placement` or `rank`.
        out: the directory of the runs; studies that share it share equal runs.
        scale: the size of the models, such as `tiny` or `130m`.
        seeds: how many runs of each variant.
        jobs: how many runs train at a time on this machine.
        data: a prepared data directory; by default the bundled corpus, at the small scales.
        steps: of training, in place of the scale's.
        tokens_per_parameter: training tokens for each parameter of the dense model, likewise.
        variants: the names of those to run; by default all.
        tune: find the learning rate of each variant (with the study `rivals`).
        tuned: a file of settings, as an earlier tuning wrote it.
        executor: `local`, or `slurm` for one job of a cluster per run.
        slurm: parameters of submitit, `timeout_min` among them.
        on_start: called with the grid, before the first run.
        on_state: called with a job, its state (`running`, `finished`, `kept` from earlier, or `failed`),
            and how many runs have ended of how many.

    Returns:
        The runs that failed and the settings that were tuned. `lpa.write_report` compares the runs.

    Raises:
        UserError: an argument that is not accepted, or a directory that holds another study of that name.
        KeyboardInterrupt: a signal ended it, once all runs have written their checkpoints.

    Example:
        >>> outcome = lpa.run_study("placement", "runs/studies", scale="tiny", seeds=1)
        >>> lpa.write_report("runs/studies")
    """
    out = Path(out)
    if isinstance(variants, str):
        variants = [variants]
    for option, number in (("seeds", seeds), ("jobs", jobs)):
        if number < 1:
            raise UserError(f"--{option}: got {number}; expected at least 1")
    check_executor(executor, slurm, jobs)
    given = None if data is None else _load_manifest(Path(data))
    settings = None if tuned is None else Path(tuned)
    choices = (steps, tokens_per_parameter, variants, tune, settings)
    study = _expand(name, scale, out, given, *choices)
    if given is None:
        data = prepare_bundled_for_scale(out, scale)
        given = _load_manifest(data)
        study = _expand(name, scale, out, given, *choices)
    assert data is not None
    on_start(tune_learning_rates(study, first_rates(study)) if tune else study)
    work = _Work(given, Path(data).resolve(), seeds, jobs, executor, dict(slurm or {}), on_state)
    directory = resolve_output(out)
    # Other studies may work in the same directory.
    part = f"{name}{TUNING_SUFFIX}" if tune else name
    with lock_directory(directory, part=f"{part}-{scale}", output=out):
        outcome = _tune_rates(study, work, directory) if tune else work.run(study, directory)
    if outcome.study.tunes and outcome.problem is None:
        _choose(outcome, directory, seeds, f"{name}-" if tune else "")
    return outcome


def _load_manifest(data: Path) -> Manifest:
    """Manifest of the data, whose tokenizer is verified before any run."""
    manifest = Manifest.load(data)
    verify_tokenizer(data, manifest)
    return manifest


@dataclass
class _Work:
    """How the runs of a study are run."""

    manifest: Manifest
    data: Path
    seeds: int
    parallel: int
    executor: str
    slurm: dict[str, int | str]
    on_state: OnState

    def run(self, study: Study, out: Path) -> StudyOutcome:
        """Run what is not finished."""
        jobs = create_jobs(study, self.seeds, out, self.data, self.manifest)
        done, total = 0, len({job.run_id for job in jobs})

        def on_state(job: Job, state: str) -> None:
            nonlocal done
            done += state != "running"
            self.on_state(job, state, done, total)

        if self.executor == "slurm":
            from lpa.study.execution.slurm_executor import submit_jobs

            failed = submit_jobs(jobs, out / "submitit", self.slurm, on_state=on_state)
        else:
            failed = run_jobs(jobs, self.parallel, on_state)
        return StudyOutcome(study, failed)


def _tune_rates(study: Study, work: _Work, out: Path) -> StudyOutcome:
    """Run a tuning with further rates until no best one is an extreme of them."""
    rates = first_rates(study)
    index = index_path(tune_learning_rates(study, rates), out)
    rates = tried_rates(index) or rates
    while True:
        outcome = work.run(tune_learning_rates(study, rates), out)
        result = read_study(index, work.seeds)
        if lost_trials(result):
            return outcome
        best = best_rates(result)
        wider = extend_rates(rates, best.values())
        if wider == rates:
            break
        rates = wider
    if without := [name for name, rate in best.items() if rate is None]:
        outcome.problem = (
            f"{', '.join(without)} diverged at every rate down to {min(rates):g}, where the search ends; "
            "tune the others with --variants in another --out"
        )
    return outcome


def _choose(outcome: StudyOutcome, out: Path, seeds: int, by_variant: str) -> None:
    """What the seeds asked for chose; an earlier start of the study may have asked for more."""
    result = read_study(index_path(outcome.study, out), seeds)
    outcome.tuned_file = out / f"tuned-{by_variant}{outcome.study.scale}.yaml"
    try:
        outcome.tuned = write_tuned(result, outcome.tuned_file)
    except UserError as error:  # runs failed
        outcome.problem = str(error)
    outcome.short_axes = short_axes(result)


def _expand(
    name: str,
    scale: str,
    out: Path | None,
    manifest: Manifest | None,
    steps: int | None,
    tokens_per_parameter: float | None,
    variants: Sequence[str],
    tune: bool,
    tuned: Path | None,
) -> Study:
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; expected a directory")
    if tuned is not None and (name == "tuning" or tune):
        raise UserError(
            "--tuned: works neither with the study tuning nor with --tune, which both find the settings"
        )
    if tune and name != "rivals":
        raise UserError(f"--tune: works only with the study rivals; got {name}")
    if steps is not None and tokens_per_parameter is not None:
        raise UserError("--steps: works only without --tokens-per-parameter; expected one of them")
    return expand_grid(
        name,
        scale,
        vocab_size=manifest.vocab_size if manifest else None,
        steps=steps,
        tokens_per_parameter=tokens_per_parameter,
        only=variants,
        tuned=read_tuned(Path(tuned), tuned_names(name)) if tuned else None,
        dtype=recorded_dtype(out, scale) if out is not None else None,
    )


def check_executor(executor: str, slurm: Mapping[str, int | str] | None, jobs: int) -> None:
    """Raise a `UserError` where one of them does not go with another."""
    if executor not in ("local", "slurm"):
        raise UserError(f"--executor: got {executor!r}; expected local or slurm")
    if slurm and executor != "slurm":
        key, value = next(iter(slurm.items()))
        raise UserError(
            f"--slurm: got {key}={value} without --executor slurm; expected both or neither"
        )
    if jobs > 1 and executor == "slurm":
        raise UserError(
            f"--jobs: got {jobs} with --executor slurm, where the cluster decides how many runs train at "
            "a time; expected one of them"
        )
    # submitit's own limit is five minutes, after which every run would be killed.
    if executor == "slurm" and "timeout_min" not in (slurm or {}):
        raise UserError(
            "--executor slurm: got no time limit of a run; expected --slurm timeout_min=MINUTES"
        )
