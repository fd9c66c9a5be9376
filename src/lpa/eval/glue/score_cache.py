"""Scores as they come in, one file per task and seed, so that what is done is never done again."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lpa.errors import UserError
from lpa.eval.glue.examples import Examples
from lpa.eval.glue.finetune import FineTuningConfig
from lpa.eval.glue.tasks import TASKS, metric_names
from lpa.model.auto import QUANT_METHOD
from lpa.model.loading import open_config
from lpa.model.weight_checks import quantization_method
from lpa.storage.files import file_sha256, write_json
from lpa.storage.records import read_json


@dataclass
class _Kept:
    """A file of scores, and what they are of."""

    request: dict[str, Any]
    scores: dict[str, float]


class ScoreCache:
    """The scores of one model, pre-trained or from scratch.

    Args:
        folder: where the files are.
        directory: of the model.
        from_scratch: whether its weights were left aside.
    """

    def __init__(self, folder: Path, directory: Path, *, from_scratch: bool) -> None:
        self.folder = folder / ("from-scratch" if from_scratch else "pre-trained")
        # From scratch the weights do not matter, only what kind of model it is.
        weights = [] if from_scratch else sorted(directory.glob("*.safetensors"))
        self._model = {
            path.name: file_sha256(path) for path in [directory / "config.json", *weights]
        }
        if from_scratch and quantization_method(open_config(directory)) == QUANT_METHOD:
            # Earlier versions scored a dense model here.
            self._model["pairs"] = "drawn"

    def load(self, request: dict[str, Any]) -> dict[str, float] | None:
        """The scores of an earlier run of the same request; None where there was none.

        Raises:
            UserError: there was one with other settings, data or weights, or its file is damaged.
        """
        path = self._path(request)
        if not path.exists():
            return None
        try:
            stored = read_json(path, _Kept)
        except UserError as error:
            raise UserError(f"{error}; remove it") from error
        # A setting that there was not yet has the default now.
        earlier, now = asdict(FineTuningConfig()) | stored.request, self._described(request)
        changed = [key for key in now if earlier.get(key) != now[key]]
        if changed:
            what = ", ".join(f"{key} was {earlier.get(key)}, now {now[key]}" for key in changed)
            raise UserError(
                f"{path}: holds a result of something else ({what}); choose another --out"
            )
        expected = metric_names(TASKS[request["task"]])
        if stored.scores.keys() != set(expected):
            raise UserError(
                f"{path}: scores: got {', '.join(stored.scores) or 'none'}; expected "
                f"{', '.join(expected)}; remove it"
            )
        return stored.scores

    def save(self, request: dict[str, Any], scores: dict[str, float]) -> None:
        stored = {"request": self._described(request), "scores": scores}
        write_json(self._path(request), stored)

    def _path(self, request: dict[str, Any]) -> Path:
        return self.folder / f"{request['task']}-seed{request['seed']}.json"

    def _described(self, request: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps({**request, "model": self._model}))


def score_key(
    task: str, examples: dict[str, Examples], settings: FineTuningConfig, seed: int
) -> dict[str, Any]:
    """What decides a score, apart from the model."""
    digest = hashlib.sha256(
        json.dumps(
            [[s, asdict(split_examples)] for s, split_examples in sorted(examples.items())]
        ).encode()
    )
    counts = {split: len(split_examples) for split, split_examples in examples.items()}
    return {
        "task": task,
        "seed": seed,
        **asdict(settings),
        "examples": counts,
        "examples_sha256": digest.hexdigest(),
    }
