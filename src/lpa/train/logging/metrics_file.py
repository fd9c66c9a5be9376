"""The file in which a run keeps its numbers; nothing here needs torch."""

import json
import os
import warnings
from pathlib import Path

from lpa.errors import LPAWarning, UserError
from lpa.storage.records import parse_value, read_json_lines
from lpa.storage.run_directory import DAMAGED_METRICS_FILE, METRICS_FILE

# One line of the file: `step`, and the numbers of that step by name.
Record = dict[str, int | float]


def read_metrics(run: Path) -> list[Record]:
    """The records of a run in order; a last line that a killed process left unfinished is dropped.

    Raises:
        UserError: any other line is damaged, by its number.
    """
    path = run / METRICS_FILE
    if not path.exists():
        return []
    records = read_json_lines(path, Record)
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("step"), int):
            raise UserError(
                f"{path}: line {number}: step: got {record.get('step')}; expected a whole number"
            )
    return records


def recover_metrics(run: Path) -> list[Record]:
    """`read_metrics` for a run that resumes: of a damaged file, the records before the damage.

    The damaged file is kept under `DAMAGED_METRICS_FILE`, and a warning says so.
    """
    try:
        return read_metrics(run)
    except UserError as error:
        path, damaged = run / METRICS_FILE, run / DAMAGED_METRICS_FILE
        records = _records_before_damage(path)
        os.replace(path, damaged)
        warnings.warn(
            f"{error}; {len(records):,} records before it are kept, and the damaged file is now {damaged}",
            LPAWarning,
            stacklevel=2,
        )
        return records


def _records_before_damage(path: Path) -> list[Record]:
    records = []
    for line in path.read_bytes().splitlines():
        try:
            records.append(parse_value(json.loads(line), Record))
        except (ValueError, RecursionError):
            break
        if not isinstance(records[-1].get("step"), int):
            return records[:-1]
    return records
