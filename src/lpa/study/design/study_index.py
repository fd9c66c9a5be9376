"""What a study asked for, as a file beside its runs."""

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lpa.errors import UserError
from lpa.storage.records import Count, read_json
from lpa.study.design.grid import Study
from lpa.study.design.grid_files import STUDIES

# What the name of a study that tunes another by variant has after that study's own.
TUNING_SUFFIX = "-tuning"

_NAME = re.compile(rf"({'|'.join(STUDIES)})({TUNING_SUFFIX})?-\w+\.json")


@dataclass
class IndexedRun:
    """A run of a study.

    Attributes:
        run: the name of its directory, see `run_id`.
    """

    variant: str
    seed: Count
    run: str


@dataclass(kw_only=True)
class StudyIndex(Study):
    """A study, and the runs that it consists of.

    Attributes:
        split: of the data, on which runs are scored.
        data_hashes: see `lpa.study.design.run_id.data_hashes`.
    """

    seeds: Count
    split: str
    data: str
    data_hashes: dict[str, Any]
    runs: list[IndexedRun]


def index_path(study: Study, out: Path) -> Path:
    return out / f"{study.name}-{study.scale}.json"


def with_earlier_variants(index: StudyIndex, earlier: StudyIndex, path: Path) -> StudyIndex:
    """An index that has the variants of an earlier start too, where neither start asked for all of them.

    Args:
        index: what is asked for now.
        earlier: what was asked for before.
        path: of the earlier index.

    Raises:
        UserError: the earlier index has another number of seeds.
    """
    before, now = ({variant.name: variant for variant in of.variants} for of in (earlier, index))
    is_part = before.keys() <= now.keys() or now.keys() <= before.keys()
    if is_part or any(variant.tunes for variant in index.variants):
        return index
    if earlier.seeds != index.seeds:
        raise UserError(
            f"--seeds: got {index.seeds}; expected {earlier.seeds}, as the variants in {path.parent} have"
        )
    kept = [run for run in earlier.runs if run.variant not in now]
    return replace(index, variants=[*(before | now).values()], runs=[*kept, *index.runs])


def recorded_dtype(out: Path, scale: str) -> str | None:
    """The precision of the studies at a scale that a directory holds already; None where it holds none."""
    for name, suffix in itertools.product(STUDIES, ("", TUNING_SUFFIX)):
        path = out / f"{name}{suffix}-{scale}.json"
        try:
            if path.is_file():
                return read_index(path).base.get("train.dtype", "float32")
        except UserError:  # its own study says what is wrong with it
            continue
    return None


def is_index(path: Path) -> bool:
    """Whether a file is the index of a study, by its name or else its content."""
    if _NAME.fullmatch(path.name):
        return True
    try:
        return {"variants", "runs", "question"} <= read_json(path, dict[str, Any]).keys()
    except UserError:
        return False


def read_index(path: Path) -> StudyIndex:
    """The index in a file.

    Raises:
        UserError: it is damaged, or contradicts itself.
    """
    index = read_json(path, StudyIndex)
    names = [variant.name for variant in index.variants]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: variants: got {names}; expected one or more, each named once")
    if index.baseline not in names:
        raise UserError(
            f"{path}: baseline: got {index.baseline!r}; expected one of {', '.join(names)}"
        )
    for number, variant in enumerate(index.variants):
        if variant.baseline not in names:
            raise UserError(
                f"{path}: variants[{number}].baseline: got {variant.baseline!r}; expected one of "
                f"{', '.join(names)}"
            )
    for number, run in enumerate(index.runs):
        if run.variant not in names:
            raise UserError(
                f"{path}: runs[{number}].variant: got {run.variant!r}; expected one of {', '.join(names)}"
            )
        if Path(run.run).name != run.run:
            raise UserError(
                f"{path}: runs[{number}].run: got {run.run!r}; expected the name of a directory"
            )
    return index
