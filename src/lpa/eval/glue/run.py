"""GLUE for one model or several: every task with every seed, beside what needs no model."""

import importlib.util
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lpa.errors import UserError
from lpa.eval.glue.finetune import FineTuning, fine_tune
from lpa.eval.glue.metrics import majority_predictions, score_predictions
from lpa.eval.glue.reading import Examples, read_task
from lpa.eval.glue.results import Store, request_of
from lpa.eval.glue.tasks import TASKS, prefix_of
from lpa.locks import hold_directory
from lpa.model.loading import model_directory

# (what is being done, steps done, steps in all)
Report = Callable[[str, int, int], None]

FROM_SCRATCH = " (from scratch)"


@dataclass
class Score:
    """A metric over seeds.

    Attributes:
        mean: over seeds.
        deviation: the standard deviation over seeds (n - 1); 0 for one seed.
        values: by seed, in order.
    """

    mean: float
    deviation: float
    values: list[float]

    @classmethod
    def of(cls, values: list[float]) -> "Score":
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), deviation, values)


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
    settings: FineTuning | None = None,
    out: Path | None = None,
    device: str = "auto",
    report: Report = lambda what, done, total: None,
) -> dict[str, TaskResult]:
    """Fine-tune each model on each task with seeds 0 … `seeds` - 1.

    Args:
        models: run directories or Hugging Face directories.
        tasks: names of `TASKS`.
        data: see `read_task`.
        from_scratch: beside each model, its architecture with random weights.
        settings: the same for all.
        out: where scores are kept, by model; by default `glue/` in the directory of each.
        report: called as the work goes on.

    Raises:
        UserError: bad input, named, or another process that scores the same model on the same task; before
            any training where it can be known.
    """
    _check(tasks, seeds)
    settings = settings or FineTuning()
    entrants = [
        _Entrant.of(path, _name(path, models), out, scratch)
        for path in models
        for scratch in ((False, True) if from_scratch else (False,))
    ]
    examples = {name: read_task(name, TASKS[name], data) for name in tasks}
    with ExitStack() as held:
        for folder in {entrant.store.folder: None for entrant in entrants}:
            for task in dict.fromkeys(tasks):
                held.enter_context(hold_directory(folder, part=task))
        return _score_all(entrants, examples, settings, seeds, device, report)


def _score_all(
    entrants: "list[_Entrant]",
    examples: dict[str, dict[str, Examples]],
    settings: FineTuning,
    seeds: int,
    device: str,
    report: Report,
) -> dict[str, TaskResult]:
    results = {}
    for task, of_task in examples.items():
        results[task] = TaskResult(
            examples={split: len(of_split) for split, of_split in of_task.items()},
            majority=_majority(task, of_task),
        )
        for entrant in entrants:
            by_seed = [
                entrant.scores(task, of_task, settings, seed, device, report)
                for seed in range(seeds)
            ]
            results[task].models[entrant.label] = {
                metric: Score.of([scores[metric] for scores in by_seed]) for metric in by_seed[0]
            }
    return results


@dataclass
class _Entrant:
    """A model to fine-tune, pre-trained or from scratch."""

    label: str
    directory: Path
    from_scratch: bool
    store: Store

    @classmethod
    def of(cls, path: Path, name: str, out: Path | None, from_scratch: bool) -> "_Entrant":
        directory = model_directory(path)
        return cls(
            label=name + (FROM_SCRATCH if from_scratch else ""),
            directory=directory,
            from_scratch=from_scratch,
            store=Store(
                path / "glue" if out is None else out / name, directory, from_scratch=from_scratch
            ),
        )

    def scores(
        self,
        task: str,
        examples: dict[str, Examples],
        settings: FineTuning,
        seed: int,
        device: str,
        report: Report,
    ) -> dict[str, float]:
        """Of one task and seed: those kept from earlier, or new ones."""
        request = request_of(task, examples, settings, seed)
        scores = self.store.load(request)
        if scores is None:
            what = f"{TASKS[task].title} {self.label} seed {seed}"
            scores = fine_tune(
                self.directory,
                TASKS[task],
                examples,
                settings,
                seed=seed,
                from_scratch=self.from_scratch,
                device=device,
                report=lambda done, total: report(what, done, total),
            )
            self.store.save(request, scores)
        return scores


def _check(tasks: Sequence[str], seeds: int) -> None:
    for name in tasks:
        if name not in TASKS:
            raise UserError(f"--task: got {name!r}; expected one of {', '.join(TASKS)}")
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
        scores.update({prefix_of(split) + name: value for name, value in found.items()})
    return scores
