"""The tasks of GLUE: their columns, labels and metrics."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        title: its name in tables, and of its folder as distributed.
        columns: of the text or the two texts, in the header of the files.
        label_column: of the label.
        labels: the label names in the order of their numbers; none where the label is a number.
        metrics: the official ones, by the names of `lpa.eval.glue.metrics`.
        hub_columns: as `columns`, of the dataset `nyu-mll/glue`.
        dev: name in results -> file of a dev split; the first one's metrics come without a prefix.
        header: the column names of files that have none.
    """

    title: str
    columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    hub_columns: tuple[str, ...]
    dev: tuple[tuple[str, str], ...] = (("validation", "dev.tsv"),)
    header: tuple[str, ...] | None = None


_PAIR = ("sentence1", "sentence2")
_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS = {
    "cola": Task(
        "CoLA",
        ("sentence",),
        "label",
        _BINARY,
        ("matthews_correlation",),
        ("sentence",),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": Task("SST-2", ("sentence",), "label", _BINARY, ("accuracy",), ("sentence",)),
    "mrpc": Task("MRPC", ("#1 String", "#2 String"), "Quality", _BINARY, ("accuracy", "f1"), _PAIR),
    "stsb": Task("STS-B", _PAIR, "score", (), ("pearson", "spearman"), _PAIR),
    "rte": Task("RTE", _PAIR, "label", _ENTAILMENT, ("accuracy",), _PAIR),
    "qnli": Task(
        "QNLI",
        ("question", "sentence"),
        "label",
        _ENTAILMENT,
        ("accuracy",),
        ("question", "sentence"),
    ),
    "qqp": Task(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        _BINARY,
        ("accuracy", "f1"),
        ("question1", "question2"),
    ),
    "mnli": Task(
        "MNLI",
        _PAIR,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        ("premise", "hypothesis"),
        dev=(
            ("validation_matched", "dev_matched.tsv"),
            ("validation_mismatched", "dev_mismatched.tsv"),
        ),
    ),
    "wnli": Task("WNLI", _PAIR, "label", _BINARY, ("accuracy",), _PAIR),
}


def metric_prefix(split: str) -> str:
    """What comes before a metric of a dev split: `mismatched_` for MNLI's second, else nothing."""
    return "mismatched_" if split.endswith("_mismatched") else ""


def metric_names(task: Task) -> list[str]:
    """The names of all that a model is scored by."""
    return [metric_prefix(split) + metric for split, _ in task.dev for metric in task.metrics]
