"""GLUE for one model or several: every task with every seed, beside what needs no model."""

import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lpa.callbacks import ProgressCallback
from lpa.device import dtype_name, resolve_device, resolve_dtype
from lpa.errors import UserError, expected_one_of
from lpa.eval.glue.examples import Examples, load_examples
from lpa.eval.glue.finetune import FineTuningConfig, fine_tune, open_classifier
from lpa.eval.glue.metrics import majority_predictions, score_predictions
from lpa.eval.glue.score_cache import ScoreCache, score_key
from lpa.eval.glue.tasks import TASKS, metric_prefix
from lpa.model.loading import model_directory
from lpa.storage.locks import lock_directory

FROM_SCRATCH = " (from scratch)"


@dataclass
class Score:
    """A metric over seeds.

    Attributes:
        mean: over seeds; nan where one is, as a correlation with constant predictions.
        std: the standard deviation over seeds (n - 1); 0 for one seed.
        values: by seed, in order.
    """

    mean: float
    std: float
    values: list[float]

    @classmethod
    def from_values(cls, values: list[float]) -> "Score":
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return cls(float(np.mean(values)), std, values)


@dataclass
class TaskResult:
    """One task.

    Attributes:
        examples: split -> how many.
        majority: metric -> what the commonest training label gets, or the mean score of STS-B.
        models: model -> metric -> score.
    """

    examples: dict[str, int]
    majority: dict[str, float]
    models: dict[str, dict[str, Score]] = field(default_factory=dict)


def run_glue(
    models: Sequence[Path],
    tasks: Sequence[str],
    *,
    data: Path | None = None,
    seeds: int = 3,
    from_scratch: bool = False,
    settings: FineTuningConfig | None = None,
    out: Path | None = None,
    device: str = "auto",
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> dict[str, TaskResult]:
    """Fine-tune each model on each task with seeds 0 … `seeds` - 1.

    Args:
        models: run directories or Hugging Face directories.
        tasks: names of `TASKS`.
        data: see `load_examples`.
        from_scratch: beside each model, its architecture with random weights.
        settings: the same for all.
        out: where scores are kept, by model; by default `glue/` in the directory of each.
        on_progress: called as the work progresses.

    Raises:
        UserError: bad input, named, or another process that scores the same model on the same task; before
            any training where it can be known.
    """
    _check(tasks, seeds)
    settings = settings or FineTuningConfig()
    chosen = resolve_dtype(settings.dtype, resolve_device(device).type)
    settings = replace(settings, dtype=dtype_name(chosen))
    candidates = [
        _Candidate.from_path(path, _name(path, models), out, scratch)
        for path in models
        for scratch in ((False, True) if from_scratch else (False,))
    ]
    examples = {name: load_examples(name, TASKS[name], data) for name in tasks}
    with ExitStack() as held:
        for folder in {candidate.store.folder: None for candidate in candidates}:
            for task in dict.fromkeys(tasks):
                held.enter_context(lock_directory(folder, part=task))
        keys = {
            name: [score_key(name, task_examples, settings, seed) for seed in range(seeds)]
            for name, task_examples in examples.items()
        }
        for candidate in candidates:
            candidate.check(keys)
        return _score_all(candidates, examples, keys, settings, device, on_progress)


def _score_all(
    candidates: "list[_Candidate]",
    examples: dict[str, dict[str, Examples]],
    keys: dict[str, list[dict[str, Any]]],
    settings: FineTuningConfig,
    device: str,
    on_progress: ProgressCallback,
) -> dict[str, TaskResult]:
    results = {}
    for task, task_examples in examples.items():
        results[task] = TaskResult(
            examples={
                split: len(split_examples) for split, split_examples in task_examples.items()
            },
            majority=_majority(task, task_examples),
        )
        for candidate in candidates:
            by_seed = [
                candidate.scores(key, task_examples, settings, device, on_progress)
                for key in keys[task]
            ]
            results[task].models[candidate.label] = {
                metric: Score.from_values([scores[metric] for scores in by_seed])
                for metric in by_seed[0]
            }
    return results


@dataclass
class _Candidate:
    """A model to fine-tune, pre-trained or from scratch."""

    label: str
    directory: Path
    from_scratch: bool
    store: ScoreCache

    @classmethod
    def from_path(cls, path: Path, name: str, out: Path | None, from_scratch: bool) -> "_Candidate":
        directory = model_directory(path)
        return cls(
            label=name + (FROM_SCRATCH if from_scratch else ""),
            directory=directory,
            from_scratch=from_scratch,
            store=ScoreCache(
                path / "glue" if out is None else out / name, directory, from_scratch=from_scratch
            ),
        )

    def check(self, keys: dict[str, list[dict[str, Any]]]) -> None:
        """Look for what would end the scoring later.

        Args:
            keys: task -> the `score_key` of each seed.

        Raises:
            UserError: a kept score is of something else, or the model cannot be fine-tuned.
        """
        kept = {task: [self.store.load(key) for key in by_seed] for task, by_seed in keys.items()}
        missing = [task for task, by_seed in kept.items() if None in by_seed]
        if missing:
            open_classifier(self.directory, TASKS[missing[0]], from_scratch=self.from_scratch)

    def scores(
        self,
        key: dict[str, Any],
        examples: dict[str, Examples],
        settings: FineTuningConfig,
        device: str,
        on_progress: ProgressCallback,
    ) -> dict[str, float]:
        """Scores of one task and seed: those kept from earlier, or new ones."""
        scores = self.store.load(key)
        if scores is None:
            task, seed = TASKS[key["task"]], key["seed"]
            what = f"{task.title} {self.label} seed {seed}"
            scores = fine_tune(
                self.directory,
                task,
                examples,
                settings,
                seed=seed,
                from_scratch=self.from_scratch,
                device=device,
                on_progress=lambda done, total: on_progress(what, done, total),
            )
            self.store.save(key, scores)
        return scores


def _check(tasks: Sequence[str], seeds: int) -> None:
    for name in tasks:
        if name not in TASKS:
            raise UserError(f"--tasks: got {name!r}; {expected_one_of(name, TASKS)}")
    if seeds < 1:
        raise UserError(f"--seeds: got {seeds}; expected at least 1")
    for module in ("accelerate", "scipy", "sklearn"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"GLUE needs {module}, which is not installed: pip install 'lpa[glue]'")


def _name(path: Path, models: Sequence[Path]) -> str:
    """The last part of a path that tells the models apart by it, else the whole path."""
    names = [other.resolve().name for other in models]
    name = path.resolve().name
    return name if names.count(name) == 1 else str(path).strip("/").replace("/", "-")


def _majority(task: str, examples: dict[str, Examples]) -> dict[str, float]:
    scores = {}
    for split, _ in TASKS[task].dev:
        predictions = majority_predictions(TASKS[task], examples["train"], len(examples[split]))
        found = score_predictions(TASKS[task], predictions, examples[split].labels)
        scores.update({metric_prefix(split) + name: value for name, value in found.items()})
    return scores
