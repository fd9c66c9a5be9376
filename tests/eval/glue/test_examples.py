import pytest

from lpa.errors import LPAWarning, UserError
from lpa.eval.glue.examples import load_examples, read_tsv
from lpa.eval.glue.tasks import TASKS

COUNTS = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "stsb": (5749, 1500),
    "rte": (2490, 277),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_official_files_are_counted_exactly(shared, name):
    task = TASKS[name]
    examples = load_examples(name, task, shared / "data" / "glue")
    assert (len(examples["train"]), len(examples["validation"])) == COUNTS[name]
    assert all(len(texts) == len(task.columns) for texts in examples["train"].texts)
    if task.labels:
        assert set(examples["train"].labels) == {0, 1}
    else:
        assert (min(examples["train"].labels), max(examples["train"].labels)) == (0, 5)


def test_the_folder_of_one_task_will_do(shared):
    folder = shared / "data" / "glue" / "RTE"
    assert len(load_examples("rte", TASKS["rte"], folder)["validation"]) == 277


def write(path, *lines, end="\n"):
    path.write_bytes("\n".join(lines).encode() + end.encode())
    return path


@pytest.mark.parametrize("end", ["\n", ""])
def test_quotes_marks_and_odd_separators_are_text(tmp_path, end):
    path = write(
        tmp_path / "dev.tsv",
        "\ufeffsentence\tlabel",
        'he said " no\t1',
        '"quoted"\t0',
        "line\u2028separator and \x0c form feed\t1",
        "ends with a carriage return\t0\r",
        "\t1",
        end=end,
    )
    examples = read_tsv(path, TASKS["sst2"])
    assert examples.texts == [
        ('he said " no',),
        ('"quoted"',),
        ("line\u2028separator and \x0c form feed",),
        ("ends with a carriage return",),
        ("",),
    ]
    assert examples.labels == [1, 0, 1, 0, 1]


def test_cola_has_no_header(tmp_path):
    path = write(tmp_path / "dev.tsv", "gj04\t1\t\tIt rained.", "gj04\t0\t*\tRained it.")
    examples = read_tsv(path, TASKS["cola"])
    assert examples.texts == [("It rained.",), ("Rained it.",)]
    assert examples.labels == [1, 0]


def test_labels_are_numbered_as_on_the_hub(tmp_path):
    path = write(
        tmp_path / "train.tsv",
        "index\tsentence1\tsentence2\tgold_label",
        *(
            f"{i}\ta\tb\t{label}"
            for i, label in enumerate(("entailment", "neutral", "contradiction"))
        ),
    )
    assert read_tsv(path, TASKS["mnli"]).labels == [0, 1, 2]


def test_mnli_has_two_dev_splits(tmp_path):
    for name in ("train", "dev_matched", "dev_mismatched"):
        write(tmp_path / f"{name}.tsv", "sentence1\tsentence2\tgold_label", "a\tb\tneutral")
    assert list(load_examples("mnli", TASKS["mnli"], tmp_path)) == [
        "train",
        "validation_matched",
        "validation_mismatched",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["text\tlabel", "a\t1"], "dev.tsv: has no column 'sentence'; its columns are text, label"),
        (["sentence\tlabel", "a\t1", "b\t2"], "line 3: got label '2'; expected one of 0, 1"),
        (["sentence\tlabel", "a\t1\tmore"], "line 2: got 3 columns; expected 2"),
        (["sentence\tlabel"], "dev.tsv: holds no example"),
        ([""], "dev.tsv: holds no example"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, lines, message):
    path = write(tmp_path / "dev.tsv", *lines, end="")
    with pytest.raises(UserError, match=message):
        read_tsv(path, TASKS["sst2"])


def test_a_few_broken_rows_are_left_out_and_said(tmp_path):
    rows = [f"{n}\t{n % 2}" for n in range(3000)]
    rows[10], rows[20] = "cut", "a\tb\t1"
    path = write(tmp_path / "dev.tsv", "sentence\tlabel", *rows)
    said = "left out 2 of 3,000 rows: line 12: got 1 columns; expected 2, and 1 more like it"
    with pytest.warns(LPAWarning, match=said):
        examples = read_tsv(path, TASKS["sst2"])
    assert [text for (text,) in examples.texts[9:12]] == ["9", "11", "12"]
    assert len(examples) == 2998


def test_a_score_that_is_no_number_is_named(tmp_path):
    path = write(tmp_path / "dev.tsv", "sentence1\tsentence2\tscore", "a\tb\tgood")
    with pytest.raises(UserError, match="line 2: got label 'good'; expected a number"):
        read_tsv(path, TASKS["stsb"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"train\.tsv: no such file; expected the folder of GLUE"):
        load_examples("rte", TASKS["rte"], tmp_path)
