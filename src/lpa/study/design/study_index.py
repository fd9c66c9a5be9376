"""What a study asked for, as a file beside its runs."""

import itertools
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lpa.errors import UserError
from lpa.storage.files import write_json
from lpa.storage.records import Count, read_json
from lpa.study.design.grid import Study
from lpa.study.design.grid_files import STUDIES

# What the name of a study that tunes another by variant has after that study's own.
TUNING_SUFFIX = "-tuning"

_NAME = re.compile(rf"({'|'.join(STUDIES)})({TUNING_SUFFIX})?-\w+\.json")

# What an index holds, as a message calls it.
_DIFFERENCES = {
    "base": "other steps or another scale of that name",
    "variants": "other tuned settings, or another grid",
    "data_hashes": "other data",
}

# Of a variant, what the planner says, perhaps otherwise in another version.
_COUNTED = ("parameters", "train_flops_per_token", "match")
_UNDECIDING_SETTINGS = ("checkpoint.", "parallel.", "model.attn_implementation")


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


def save_index(path: Path, index: StudyIndex) -> None:
    """Write an index, or keep that of an earlier start of the same study that has all of this one.

    Variants may be added to a study, as tuning by variant does with rates, or some of them run alone.

    Raises:
        UserError: the file is that of a study with other settings or data, or of other seeds.
    """
    if not path.exists():
        write_json(path, asdict(index))
        return
    before = read_index(path)
    index = with_earlier_variants(index, before, path)
    earlier, now = _deciding(before), _deciding(index)
    has_all = all(variant in now["variants"] for variant in earlier["variants"])
    is_part = all(variant in earlier["variants"] for variant in now["variants"])
    # Of a tuning, a part would choose among fewer settings.
    is_part = is_part and (has_all or not any(variant["tunes"] for variant in now["variants"]))
    for key, difference in _DIFFERENCES.items():
        if earlier[key] != now[key] and not (key == "variants" and (has_all or is_part)):
            raise UserError(
                f"--out {path.parent}: holds {index.name} at {index.scale} with {difference}; expected "
                "another directory"
            )
    more, fewer = index.seeds > before.seeds, index.seeds < before.seeds
    if (more and not has_all) or (fewer and not is_part):
        raise UserError(
            f"--seeds: got {index.seeds}; expected {before.seeds}, as the variants in {path.parent} have"
        )
    if has_all and not fewer:
        write_json(path, asdict(index))


def _deciding(index: StudyIndex) -> dict[str, Any]:
    """An index, as its file has it, without what makes no run another one.

    That is what the planner counts, and how runs are computed and kept.
    """
    fields = json.loads(json.dumps(asdict(index)))
    base = {
        name: value
        for name, value in fields["base"].items()
        if not name.startswith(_UNDECIDING_SETTINGS)
    }
    variants = [
        {name: value for name, value in variant.items() if name not in _COUNTED}
        for variant in fields["variants"]
    ]
    return {**fields, "base": base, "variants": variants}


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
