"""The model with the lowest validation loss of a run, `best/`, and which evaluation that was."""

from dataclasses import dataclass
from pathlib import Path

from lpa.storage.outputs import MODEL, check_output_directory, read_marker, remove
from lpa.storage.records import Count, read_json
from lpa.storage.run_directory import BEST_DIRECTORY, BEST_EVALUATION_FILE
from lpa.train.state import TrainState


@dataclass
class BestEvaluation:
    """The evaluation in which the model in `best/` was the best, kept beside it.

    Attributes:
        step: optimizer steps that the model has made.
        loss: on the validation split, or the part of it that was evaluated.
    """

    step: Count
    loss: float


def holds_best(run: Path, state: TrainState) -> bool:
    """Whether `best/` is the model that the best loss of a state is of; where there is no such loss, nothing.

    It is not where no such model was kept, or where the run saved a later one before it went back to this
    state. An earlier version did not say which model is there; it is taken for that of the state.
    """
    directory = run / BEST_DIRECTORY
    if state.best_step is None or state.best_loss is None or not directory.is_dir():
        return state.best_step is None and not directory.is_dir()
    file = directory / BEST_EVALUATION_FILE
    expected = BestEvaluation(state.best_step, state.best_loss)
    return not file.exists() or read_json(file, BestEvaluation) == expected


def remove_best(run: Path) -> None:
    """Remove `best/`, if there is one and it is a model that a run wrote.

    Raises:
        UserError: it holds a file that the run did not write.
    """
    directory = run / BEST_DIRECTORY
    if directory.is_dir() and read_marker(directory) is not None:
        check_output_directory(directory, MODEL, overwrite=True)
        remove([directory])
