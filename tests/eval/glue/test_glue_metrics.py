import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from lpa.eval.glue.examples import Examples
from lpa.eval.glue.metrics import majority_predictions, score_logits, score_predictions
from lpa.eval.glue.tasks import TASKS

LABELS = [1, 1, 1, 0, 0, 1, 0, 1]
PREDICTIONS = np.array([1, 0, 1, 0, 1, 1, 0, 1])
# Counted by hand: 4 true positives, 2 true negatives, 1 false positive, 1 false negative.
BY_HAND = {
    "accuracy": 6 / 8,
    "f1": 2 * 4 / (2 * 4 + 1 + 1),
    "matthews_correlation": (4 * 2 - 1 * 1) / math.sqrt(5 * 5 * 3 * 3),
}


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if len(task.labels) == 2])
def test_binary_tasks_have_the_official_metrics(name):
    task = TASKS[name]
    official = {"cola": ["matthews_correlation"], "mrpc": ["accuracy", "f1"]}
    official["qqp"] = official["mrpc"]
    scores = score_predictions(task, PREDICTIONS, LABELS)
    assert list(scores) == official.get(name, ["accuracy"])
    by_sklearn = {
        "accuracy": sklearn.metrics.accuracy_score(LABELS, PREDICTIONS),
        "f1": sklearn.metrics.f1_score(LABELS, PREDICTIONS),
        "matthews_correlation": sklearn.metrics.matthews_corrcoef(LABELS, PREDICTIONS),
    }
    for metric, value in scores.items():
        assert value == by_sklearn[metric]
        assert value == pytest.approx(BY_HAND[metric])


def test_three_classes_are_counted():
    scores = score_predictions(TASKS["mnli"], np.array([0, 1, 2, 2]), [0, 1, 2, 0])
    assert scores == {"accuracy": 0.75}


def test_correlations_are_those_of_scipy():
    generator = np.random.default_rng(0)
    labels = generator.uniform(0, 5, 200)
    predictions = labels + generator.normal(size=200)
    scores = score_predictions(TASKS["stsb"], predictions, list(labels))
    assert scores["pearson"] == scipy.stats.pearsonr(labels, predictions).statistic
    assert scores["spearman"] == scipy.stats.spearmanr(labels, predictions).statistic


@pytest.mark.parametrize("name", ["sst2", "mnli", "stsb"])
def test_logits_of_a_model_that_diverged_have_no_score(name):
    task = TASKS[name]
    logits = np.zeros((4, len(task.labels) or 1))
    logits[2, -1] = math.nan
    labels = np.array([0, 1, 0, 1])
    assert score_logits(task, logits, labels).keys() == set(task.metrics)
    assert all(map(math.isnan, score_logits(task, logits, labels).values()))
    logits[2, -1] = 1.0
    if task.labels:
        assert score_logits(task, logits, labels) == score_predictions(
            task, np.array([0, 0, logits.shape[1] - 1, 0]), labels
        )
    else:
        assert score_logits(task, logits, labels) == score_predictions(task, logits[:, 0], labels)


def test_the_majority_is_of_the_training_labels():
    train = Examples([("a",)] * 3, [0, 0, 1])
    assert majority_predictions(TASKS["rte"], train, 4).tolist() == [0] * 4
    scores = Examples([("a", "b")] * 2, [1.0, 4.0])
    constant = majority_predictions(TASKS["stsb"], scores, 3)
    assert constant.tolist() == [2.5] * 3
    assert math.isnan(score_predictions(TASKS["stsb"], constant, [1.0, 2.0, 3.0])["pearson"])


@pytest.mark.parametrize(
    ("name", "expected"),
    # Published majority baselines of the dev splits: 68.4 / 81.2 (MRPC), 52.7 (RTE), 50.9 (SST-2).
    [
        ("cola", {"matthews_correlation": 0.0}),
        ("sst2", {"accuracy": 0.509}),
        ("mrpc", {"accuracy": 0.684, "f1": 0.812}),
        ("rte", {"accuracy": 0.527}),
    ],
)
def test_the_majority_of_the_official_data(shared, name, expected):
    from lpa.eval.glue.examples import load_examples

    examples = load_examples(name, TASKS[name], shared / "data" / "glue")
    dev = examples["validation"]
    constant = majority_predictions(TASKS[name], examples["train"], len(dev))
    assert score_predictions(TASKS[name], constant, dev.labels) == pytest.approx(expected, abs=1e-3)
