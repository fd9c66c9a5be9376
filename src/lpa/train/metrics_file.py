"""The file in which a run keeps its numbers; nothing here needs torch."""

from pathlib import Path

from lpa.errors import UserError
from lpa.records import read_json_lines

FILE_NAME = "metrics.jsonl"

# One line of the file: `step`, and the numbers of that step by name.
Record = dict[str, int | float]


def read_metrics(run: Path) -> list[Record]:
    """The records of a run in order; a last line that a killed process left unfinished is dropped.

    Raises:
        UserError: any other line is damaged, by its number.
    """
    path = run / FILE_NAME
    if not path.exists():
        return []
    records = read_json_lines(path, Record)
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("step"), int):
            raise UserError(
                f"{path}: line {number}: step: got {record.get('step')}; expected a whole number"
            )
    return records
