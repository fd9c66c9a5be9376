"""Several texts at once: what can be refused is refused first, and no result is lost."""

import json
import shutil

import pytest
from helpers.damaged_models import edit_json

COMMANDS = {"perplexity": ["{run}"], "compare": ["{run}", "{run}"]}


@pytest.fixture
def texts(tmp_path):
    """A text in whole, and one whose fault only shows once the first of it was read."""
    lines = "".join(f"{n} times {n * n} is {n**3} and no more\n" for n in range(60))
    (tmp_path / "good.txt").write_text(lines)
    (tmp_path / "late.jsonl").write_text(json.dumps({"text": lines}) + "\n{broken\n")
    return tmp_path


@pytest.fixture(params=COMMANDS)
def score(request, run, lpa, texts):
    """Score texts with a command."""

    def score(*arguments):
        models = [model.format(run=run) for model in COMMANDS[request.param]]
        return lpa("eval", request.param, *models, "--data", *arguments, cwd=texts)

    return score


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("good.txt typo.txt", "typo.txt: no such file"),
        ("good.txt blank.txt", "blank.txt: no text"),
        ("good.txt no-column.jsonl", "no text in column 'text'"),
        ("{data} good.txt --split test", "good.txt is not a prepared data directory"),
        ("good.txt {other}", "was made with another tokenizer than the model's"),
        ("good.txt {spoiled}", "test-00000.npy: no such shard"),
    ],
)
def test_a_text_that_cannot_be_scored_is_refused_before_any_is(
    score, prepared, texts, sources, message
):
    (texts / "blank.txt").write_text("\n \n")
    (texts / "no-column.jsonl").write_text('{"body": "words"}\n')
    folders = {"data": prepared, "other": texts / "other", "spoiled": texts / "spoiled"}
    for name in ("other", "spoiled"):
        shutil.copytree(prepared, folders[name])
    edit_json(folders["other"] / "manifest.json", {"tokenizer_sha256": 64 * "0"})
    (folders["spoiled"] / "test-00000.npy").unlink()
    finished = score(*sources.format(**folders).split())
    assert finished.code == 2
    assert message in finished.stderr
    assert "scoring" not in finished.stderr
    assert finished.stdout == ""


def test_results_of_the_texts_before_a_refused_one_are_printed(score):
    finished = score("good.txt", "late.jsonl")
    assert (finished.code, finished.stderr.count("late.jsonl: cannot be read")) == (2, 1)
    assert finished.stdout.startswith("good.txt:\n")
    assert "perplexity" in finished.stdout


def test_json_is_whole_where_a_later_text_is_refused(score):
    finished = score("good.txt", "late.jsonl", "--json")
    assert (finished.code, finished.stderr.count("late.jsonl: cannot be read")) == (2, 1)
    whole = score("good.txt", "--json")
    assert json.loads(finished.stdout) == {"good.txt": json.loads(whole.stdout)}
    alone = score("late.jsonl", "--json")
    assert (alone.code, alone.stdout) == (2, "")


def test_a_text_that_is_named_twice_is_one_result(score):
    once, twice = score("good.txt", "--json"), score("good.txt", "good.txt", "--json")
    assert twice.stdout == once.stdout
