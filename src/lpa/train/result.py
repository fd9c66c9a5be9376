"""How a run ended."""

import json
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

from lpa.files import write_text
from lpa.train.evaluate import Perplexity

RESULT_FILE = "result.json"


@dataclass
class RunResult:
    """What a finished run came to; written as `result.json`.

    Attributes:
        steps, tokens: trained.
        parameters: of the model.
        train_flops_per_token: forward and backward (see `lpa.model.cost`).
        tokens_per_second: tokens over train_seconds.
        train_seconds, wall_seconds, peak_memory_bytes: see `Progress`.
        validation: on the whole validation split; None where the data has none.
    """

    steps: int
    tokens: int
    parameters: int
    train_flops_per_token: int
    tokens_per_second: float
    train_seconds: float
    wall_seconds: float
    peak_memory_bytes: int
    validation: Perplexity | None

    def save(self, run: Path) -> None:
        write_text(run / RESULT_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, run: Path) -> "RunResult":
        fields = json.loads((run / RESULT_FILE).read_text())
        validation = fields.pop("validation")
        return cls(**fields, validation=Perplexity(**validation) if validation else None)


class RunInterruptedError(Exception):
    """A signal ended a run, which left a checkpoint of this step."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"{signal.Signals(signal_number).name} at step {step}")
        self.signal_number = signal_number
        self.step = step
