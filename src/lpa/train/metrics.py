"""The record of a run: JSON Lines, and the same numbers for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from lpa.files import write_text

FILE_NAME = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run in order; a last line that a killed process left unfinished is dropped."""
    path = run / FILE_NAME
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class MetricsLog:
    """Appends records to `metrics.jsonl` and to TensorBoard's event file.

    Args:
        run: the run directory.
        step: the step that the run goes on from; later records, left by a process that died after
            its last checkpoint, are dropped, since those steps are now done again.
    """

    def __init__(self, run: Path, *, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = [record for record in read_metrics(run) if record["step"] <= step]
        write_text(run / FILE_NAME, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(run / FILE_NAME, "a", encoding="utf-8")  # noqa: SIM115, closed by close()
        self._board = SummaryWriter(str(run), purge_step=step + 1 if step else None)

    def write(self, step: int, **values: float) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
