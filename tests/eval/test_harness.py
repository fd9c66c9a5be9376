import json

import pytest
import torch
from helpers.harness_task import TASK

from lpa.convert.merge import merge_directory
from lpa.errors import UserError
from lpa.eval.harness import run_harness
from lpa.eval.loading import load_with_tokenizer

QUESTIONS = [
    {"question": "My fellow", "choices": ["citizens", "bananas", "?"], "answer": 0},
    {
        "question": "The state of the",
        "choices": ["Union", "of of of", "art is long"],
        "answer": 0,
    },
    {"question": "We the", "choices": ["people", "xyzzy"], "answer": 0},
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    path = folder / "continuation.yaml"
    path.write_text(TASK.format(data=data))
    return path


def log_likelihoods(results):
    """Of each choice of each question."""
    samples = sorted(results["samples"]["continuation"], key=lambda sample: sample["doc_id"])
    return [[response[0][0] for response in sample["resps"]] for sample in samples]


@pytest.fixture(scope="module")
def of_lpa(run, task):
    return run_harness(run, [str(task)], device="cpu")


def test_a_custom_task_file_scores_as_by_hand(of_lpa, run):
    model, tokenizer = load_with_tokenizer(run, "cpu")
    found = log_likelihoods(of_lpa)
    right = 0
    for row, values in zip(QUESTIONS, found, strict=True):
        by_hand = []
        for choice in row["choices"]:
            asked = tokenizer(row["question"])["input_ids"]
            ids = torch.tensor([tokenizer(f"{row['question']} {choice}")["input_ids"]])
            with torch.no_grad():
                losses = torch.log_softmax(model(ids).logits[0, :-1], -1)
            picked = losses.gather(1, ids[0, 1:, None])[len(asked) - 1 :]
            by_hand.append(picked.sum().item())
        assert values == pytest.approx(by_hand, rel=1e-4)
        right += by_hand.index(max(by_hand)) == row["answer"]
    assert of_lpa["results"]["continuation"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


def test_the_merged_model_has_the_same_log_likelihoods(of_lpa, run, task, tmp_path):
    merge_directory(run / "final", tmp_path / "merged")
    merged = run_harness(tmp_path / "merged", [str(task)], device="cpu")
    for ours, theirs in zip(log_likelihoods(of_lpa), log_likelihoods(merged), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_limit_and_the_batch_size(of_lpa, run, task):
    limited = run_harness(run, [str(task)], limit=2, batch_size=1, device="cpu")
    assert len(log_likelihoods(limited)) == 2
    for some, all_of_them in zip(log_likelihoods(limited), log_likelihoods(of_lpa), strict=False):
        assert some == pytest.approx(all_of_them, rel=1e-4)


@pytest.fixture
def zero_shot_task(task, tmp_path):
    """The task with the number of its examples fixed at zero."""
    path = tmp_path / "zero_shot.yaml"
    text = task.read_text().replace("task: continuation", "task: zero_shot")
    path.write_text(f"{text}fewshot_split: train\nnum_fewshot: 0\n")
    return path


def test_examples_that_a_task_does_not_take_are_refused(run, zero_shot_task):
    message = "--num-fewshot: got 2; expected 0 for zero_shot, whose file has `num_fewshot: 0`"
    with pytest.raises(UserError, match=f"^{message}"):
        run_harness(run, [str(zero_shot_task)], num_fewshot=2, device="cpu")
    results = run_harness(run, [str(zero_shot_task)], num_fewshot=0, device="cpu")
    assert results["n-shot"] == {"zero_shot": 0}


def test_the_command_shows_how_many_examples_were_given(lpa, run, task, tmp_path):
    path = tmp_path / "few_shot.yaml"
    text = task.read_text().replace("task: continuation", "task: few_shot")
    path.write_text(f"{text}fewshot_split: train\n")
    asked = ("eval", "harness", run, "--tasks", path, "--num-fewshot", 2, "--device", "cpu")
    finished = lpa(*asked, "--json")
    assert finished.code == 0, finished.stderr
    assert json.loads(finished.stdout)["few_shot"]["num_fewshot"] == 2
    assert "n-shot" in lpa(*asked).stdout


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no_such_task", None, "got 'no_such_task'; expected a task that `lm-eval ls tasks` lists"),
        ("gone.yaml", None, "gone.yaml: no such file"),
        ("bad.yaml", "a: b: c", "bad.yaml: is not YAML"),
        ("nameless.yaml", "dataset_path: json", "nameless.yaml: has no `task: NAME`"),
        (
            "dataless.yaml",
            "task: dataless\ndataset_path: json\noutput_type: multiple_choice",
            "lm-eval",
        ),
    ],
)
def test_a_task_that_cannot_be_is_named(run, tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        run_harness(run, [name], device="cpu")
