"""The official metrics of GLUE, by scikit-learn and SciPy."""

import math
import warnings
from collections.abc import Sequence

import numpy as np

from lpa.eval.glue.examples import Examples
from lpa.eval.glue.tasks import Task


def score_predictions(
    task: Task, predictions: np.ndarray, labels: np.ndarray | Sequence[int] | Sequence[float]
) -> dict[str, float]:
    """Each metric of a task.

    Args:
        predictions: (examples,), label numbers or scores.
        labels: (examples,).

    A correlation with a constant is not defined and comes out as nan.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    known = {
        "accuracy": lambda: accuracy_score(labels, predictions),
        "f1": lambda: f1_score(labels, predictions),
        "matthews_correlation": lambda: matthews_corrcoef(labels, predictions),
        "pearson": lambda: pearsonr(predictions, labels).statistic,
        "spearman": lambda: spearmanr(predictions, labels).statistic,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn of a constant
        return {name: float(known[name]()) for name in task.metrics}


def score_logits(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Each metric of a task; nan where a logit is no finite number, as of a model that diverged.

    Args:
        logits: (examples, labels), or (examples, 1) of a task with scores.
        labels: (examples,).
    """
    if not np.isfinite(logits).all():
        return dict.fromkeys(task.metrics, math.nan)
    predictions = logits.argmax(axis=-1) if task.labels else logits.reshape(-1)
    return score_predictions(task, predictions, labels)


def majority_predictions(task: Task, train: Examples, count: int) -> np.ndarray:
    """What is right most often without reading: the commonest training label, or the mean score."""
    if not task.labels:
        return np.full(count, np.mean(train.labels))
    commonest = np.bincount(np.array(train.labels, dtype=np.int64)).argmax()
    return np.full(count, commonest)
