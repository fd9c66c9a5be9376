"""What the runs below a directory came to, or how far they are."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lpa.errors import UserError

_CONFIG, _RESULT, _METRICS = "config.yaml", "result.json", "metrics.jsonl"
_CHECKPOINT = re.compile(r"step-(\d{8})")


@dataclass
class RunRow:
    """One run; None stands for what its files do not say.

    Attributes:
        name: its directory.
        placement, rank: of the model, the rank as `rank` or `rank / FFN rank`, or `preset` where the
            recipe leaves it to that.
        parameters: known once the run is finished.
        state: `finished`, `stopped at step N of M` (N of the latest checkpoint; it may still be
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
FIELDS = tuple(name for name in RunRow.__dataclass_fields__ if name != "problem")


def find_runs(root: Path) -> list[Path]:
    """The run directories at or below `root`; nothing inside one is searched.

    Raises:
        UserError: `root` does not exist or holds none.
    """
    if not root.is_dir():
        raise UserError(f"DIR {root}: no such directory; expected one that holds runs")
    found = list(_walk(root))
    if not found:
        raise UserError(f"DIR {root}: holds no run; expected directories with a {_CONFIG}")
    return found


def _walk(directory: Path) -> Iterator[Path]:
    if (directory / _CONFIG).exists():
        yield directory
        return
    try:
        below = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except PermissionError:
        return
    for path in below:
        if path.is_dir() and not path.is_symlink():  # a link could lead round in a circle
            yield from _walk(path)


def sort_runs(rows: list[RunRow], field: str) -> list[RunRow]:
    """By a field of `FIELDS`, upwards; rows without it come last."""

    def key(row: RunRow) -> tuple[bool, Any]:
        value = getattr(row, field)
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        return missing, "" if missing else value

    return sorted(rows, key=key)


def read_run(run: Path, name: str) -> RunRow:
    """A row of what the files of a run say, whatever state they are in."""
    row = RunRow(name)
    problems = []
    for read in (_read_metrics, _read_config, _read_result):
        try:
            read(run, row)
        except _UnreadableError as problem:
            problems.append(str(problem))
    row.problem = "; ".join(problems)
    return row


class _UnreadableError(Exception):
    """What is wrong with a file, in one line."""


def _parsed(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        raise _UnreadableError(f"{path.name}: {reason}") from error
    if not isinstance(value, dict):
        raise _UnreadableError(f"{path.name}: damaged")
    return value


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise _UnreadableError(f"{_CONFIG}: no section {name}")
    return section


def _number(value: Any) -> Any:
    """A number as it is, anything else as None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read_metrics(run: Path, row: RunRow) -> None:
    """The last record of each kind; a line that a kill left unfinished may only be the last."""
    path = run / _METRICS
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise _UnreadableError(f"{_METRICS}: damaged") from error
    for index, line in enumerate(lines):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            if index == len(lines) - 1:
                break
            raise _UnreadableError(f"{_METRICS}: line {index + 1} damaged")
        if "loss" in record:
            row.steps = _whole(record.get("step"))
            row.tokens = _whole(record.get("tokens"))
            row.loss = _number(record["loss"])
            row.tokens_per_second = _number(record.get("tokens_per_second"))
            row.seconds = _number(record.get("train_seconds"))
        if "validation_perplexity" in record:
            row.perplexity = _number(record["validation_perplexity"])


def _read_config(run: Path, row: RunRow) -> None:
    """Model and state: the latest checkpoint is known by its name."""
    steps = [
        int(found[1])
        for path in (run / "checkpoints").glob("step-*")
        if (found := _CHECKPOINT.fullmatch(path.name))
    ]
    row.state = f"stopped at step {max(steps):,}" if steps else "no checkpoint yet"
    config = _parsed(run / _CONFIG, yaml.safe_load)
    model, train = _section(config, "model"), _section(config, "train")
    row.placement = str(model.get("placement", "attention"))
    if row.placement != "none":
        ranks = [model.get("rank"), model.get("ffn_rank")]
        given = [str(rank) for rank in ranks if rank is not None]
        row.rank = " / ".join(given) or "preset"
    if steps and (total := _whole(train.get("steps"))):
        row.state += f" of {total:,}"


def _read_result(run: Path, row: RunRow) -> None:
    """What a finished run came to goes over what its records say."""
    if not (run / _RESULT).exists():
        return
    result = _parsed(run / _RESULT, json.loads)
    row.state = "finished"
    row.parameters = _whole(result.get("parameters"))
    row.steps = _whole(result.get("steps"))
    row.tokens = _whole(result.get("tokens"))
    row.tokens_per_second = _number(result.get("tokens_per_second"))
    row.seconds = _number(result.get("wall_seconds"))
    if isinstance(validation := result.get("validation"), dict):
        row.perplexity = _number(validation.get("perplexity"))
