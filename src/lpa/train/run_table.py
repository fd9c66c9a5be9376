"""The results of the runs below a directory, or how far they are."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpa.errors import UserError, expected_one_of
from lpa.storage.records import parse_value, read_json, read_yaml
from lpa.storage.run_directory import CONFIG_FILE, INITIAL_WEIGHTS_FILE, RESULT_FILE
from lpa.train.checkpoint import store
from lpa.train.logging.metrics_file import read_metrics
from lpa.train.result import RunResult


@dataclass
class RunRow:
    """One run; None stands for what its files do not say.

    Attributes:
        name: its directory.
        placement, rank: of the model, the rank as `rank` or `rank / FFN rank`, or `preset` where the
            recipe leaves it to that. Where each projection has its own rank, `by projection` and the range.
        parameters: known once the run is finished.
        state: `finished`, `checkpoint at step N of M` (N of the latest checkpoint; it may still be
            running), `no checkpoint yet`.
        steps, tokens: trained, by the result or else the last record.
        loss: the last training loss on record.
        perplexity: on the validation split, the last on record; all of it for a finished run.
        tokens_per_second, seconds: speed of the training steps and wall time, or time in training
            steps where the run is not finished.
        problem: what could not be read; empty where all could.
    """

    name: str
    placement: str | None = None
    rank: str | None = None
    parameters: int | None = None
    state: str | None = None
    steps: int | None = None
    tokens: int | None = None
    loss: float | None = None
    perplexity: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    problem: str = ""


# What rows can be sorted by.
SORT_FIELDS = tuple(name for name in RunRow.__dataclass_fields__ if name != "problem")


def list_runs(
    directories: str | Path | Sequence[str | Path], *, sort: str = "name"
) -> list[RunRow]:
    """Tabulates the runs at or below some directories: results, and the progress of the others.

    Args:
        directories: one or several run directories, or those that contain some.
        sort: the field of `RunRow` to sort by, ascending; rows without it come last.

    Returns:
        A row for each run, once.

    Raises:
        UserError: a directory that does not exist or holds no run, or no such field.

    Example:
        >>> for row in lpa.list_runs("runs", sort="perplexity"):
        ...     print(row.name, row.perplexity)
    """
    if sort not in SORT_FIELDS:
        raise UserError(f"--sort: got {sort!r}; {expected_one_of(sort, SORT_FIELDS)}")
    given = [directories] if isinstance(directories, str | Path) else directories
    found = [run for root in given for run in find_runs(Path(root))]
    # The same run once where one directory is within another, or a link leads to it; not by the link's name.
    found.sort(key=Path.is_symlink, reverse=True)
    runs = {run.resolve(): run for run in found}
    return sort_runs([read_run(run, str(run)) for run in runs.values()], sort)


def find_runs(root: Path) -> list[Path]:
    """The run directories at or below `root`, and those that links there lead to.

    Nothing inside a run is searched, nor below a link that leads to another directory.

    Raises:
        UserError: `root` does not exist or holds none.
    """
    if not root.is_dir():
        raise UserError(f"DIR {root}: no such directory; expected one that holds runs")
    found = list(_find(root))
    if not found:
        raise UserError(f"DIR {root}: holds no run; expected directories with a {CONFIG_FILE}")
    return found


def _find(directory: Path) -> Iterator[Path]:
    if _is_run(directory):
        yield directory
        return
    try:
        subdirectories = sorted(
            path for path in directory.iterdir() if not path.name.startswith(".")
        )
    except PermissionError:
        return
    for path in subdirectories:
        if path.is_symlink():  # not searched, as it could lead around in a circle
            if _is_run(path):
                yield path
        elif path.is_dir():
            yield from _find(path)


def _is_run(directory: Path) -> bool:
    try:
        return (directory / CONFIG_FILE).exists()
    except PermissionError:
        return False


def sort_runs(rows: list[RunRow], field: str) -> list[RunRow]:
    """Sort by a field of `SORT_FIELDS`, ascending; rows without it come last."""

    def key(row: RunRow) -> tuple[bool, Any]:
        value = getattr(row, field)
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        if field in ("rank", "state") and not missing:
            value = _split_numbers(value)
        return missing, "" if missing else value

    return sorted(rows, key=key)


def _split_numbers(text: str) -> list[str | int]:
    """Text and the numbers in it, in turns: what orders `8` before `16`."""
    parts = re.split(r"(\d[\d,]*)", text)
    return [int(part.replace(",", "")) if i % 2 else part for i, part in enumerate(parts)]


def read_run(run: Path, name: str) -> RunRow:
    """A row of what the files of a run say, whatever state they are in."""
    row = RunRow(name)
    problems = []
    for read in (_read_metrics, _read_config, _read_result):
        try:
            read(run, row)
        except UserError as problem:
            problems.append(str(problem).removeprefix(f"{run}/"))
    row.problem = "; ".join(problems)
    return row


@dataclass
class _ShownModel:
    placement: str = "attention"
    rank: int | None = None
    ffn_rank: int | None = None
    ranks: dict[str, Any] | None = None

    def describe(self) -> tuple[str, str | None]:
        """Placement and rank as a row has them."""
        if self.ranks:
            of_layers = (r if isinstance(r, list) else [r] for r in self.ranks.values())
            known = sorted({rank for ranks in of_layers for rank in ranks if isinstance(rank, int)})
            return "by projection", "–".join(
                map(str, dict.fromkeys(known[:1] + known[-1:]))
            ) or None
        if self.placement == "none":
            return self.placement, None
        ranks = [str(rank) for rank in (self.rank, self.ffn_rank) if rank is not None]
        return self.placement, " / ".join(ranks) or "preset"


@dataclass
class _ShownTraining:
    steps: int | None = None


@dataclass
class _Shown:
    """What the table shows of a run's `config.yaml`, in which other versions may have other fields."""

    model: _ShownModel
    train: _ShownTraining


_SHOWN = {"model": ("placement", "rank", "ffn_rank", "ranks"), "train": ("steps",)}


def _read_metrics(run: Path, row: RunRow) -> None:
    """The last record of each kind."""
    for record in read_metrics(run):
        if "loss" in record:
            row.steps = int(record["step"])
            row.tokens = _int_or_none(record.get("tokens"))
            row.loss = record["loss"]
            row.tokens_per_second = record.get("tokens_per_second")
            row.seconds = record.get("train_seconds")
        if "validation_perplexity" in record:
            row.perplexity = record["validation_perplexity"]


def _int_or_none(value: float | None) -> int | None:
    return value if isinstance(value, int) else None


def _read_config(run: Path, row: RunRow) -> None:
    """Model and state."""
    checkpoint = next(iter(store.resumable_checkpoints(run)), None)
    row.state = (
        f"checkpoint at step {store.step_of(checkpoint):,}" if checkpoint else "no checkpoint yet"
    )
    config = read_yaml(run / CONFIG_FILE, dict[str, dict[str, Any]])
    given = {
        section: {name: value for name, value in config[section].items() if name in shown}
        for section, shown in _SHOWN.items()
        if section in config
    }
    shown = parse_value(given, _Shown, where=run / CONFIG_FILE)
    model = shown.model
    if (run / INITIAL_WEIGHTS_FILE).exists():  # the recipe says nothing of a model that was there
        model = _source_model(run / INITIAL_WEIGHTS_FILE)
    row.placement, row.rank = model.describe()
    if checkpoint and shown.train.steps:
        row.state += f" of {shown.train.steps:,}"


def _source_model(file: Path) -> _ShownModel:
    """What is shown of the model that a run started from."""
    config = parse_value(
        read_json(file, dict[str, Any]).get("config"), dict[str, Any], where=file, field="config"
    )
    given = {name: config[name] for name in _SHOWN["model"] if name in config}
    return parse_value(given, _ShownModel, where=file, field="config")


def _read_result(run: Path, row: RunRow) -> None:
    """The result of a finished run replaces what its records say."""
    if not (run / RESULT_FILE).exists():
        return
    result = RunResult.load(run)
    row.state = "finished"
    row.parameters = result.parameters
    row.steps = result.steps
    row.tokens = result.tokens
    row.tokens_per_second = result.tokens_per_second
    row.seconds = result.wall_seconds
    if result.validation is not None:
        row.perplexity = result.validation.perplexity
