"""What people do with a model by its path, where this package is missing and its code is trusted."""

import json

import pytest
import torch
from helpers.architectures import tiny
from helpers.harness_task import TASK
from transformers import AutoTokenizer, pipeline

from lpa.convert.factorize import FactorizeConfig, factorize_directory
from lpa.eval.harness import run_harness

pytest.importorskip("trl")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("elsewhere")]

QUESTIONS = [{"question": "We the", "choices": ["people", "xyzzy", "of"], "answer": 0}] * 3

# The pipeline, the command line of the harness, and TRL's trainers, one directory after the other.
USES = """
import json, pathlib, runpy
import transformers, trl
from datasets import Dataset

folder, *directories = sys.argv[1:]
folder = pathlib.Path(folder)
scored = directories[0]  # one: to list the tasks that the harness brings takes ten seconds
rows = {
    "SFT": [{"text": "We the people of the United States"}] * 8,
    "DPO": [{"prompt": "We", "chosen": " the people", "rejected": " no one at all"}] * 8,
}
generate = {"max_new_tokens": 8, "do_sample": False}
quick = {
    "per_device_train_batch_size": 2, "max_steps": 6, "learning_rate": 5e-3, "logging_steps": 1,
    "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    "trust_remote_code": True,
}
found = {}
for directory in directories:
    answers = found[directory] = {}
    pipe = transformers.pipeline("text-generation", directory, trust_remote_code=True)
    answers["text"] = pipe("We the", **generate)[0]["generated_text"]
    for name, data in rows.items():
        config = getattr(trl, f"{name}Config")(str(folder / name), **quick)
        trainer = getattr(trl, f"{name}Trainer")(
            directory, args=config, train_dataset=Dataset.from_list(data)
        )
        trainer.train()
        answers[name] = [r["loss"] for r in trainer.state.log_history if "loss" in r]
sys.argv = [
    "lm_eval", "--model", "hf", "--model_args", f"pretrained={scored},dtype=float32",
    "--trust_remote_code", "--tasks", "continuation", "--include_path", str(folder),
    "--device", "cpu", "--output_path", str(folder / "scores"), "--log_samples",
]
runpy.run_module("lm_eval", run_name="__main__")
[samples] = (folder / "scores").rglob("samples_*.jsonl")
found[scored]["scores"] = [json.loads(line)["resps"] for line in open(samples)]
(folder / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def directories(run, prepared, tmp_path_factory):
    """A model of our class, and one that keeps its own."""
    folder = tmp_path_factory.mktemp("directories")
    tiny("gpt2").save_pretrained(folder / "dense")
    AutoTokenizer.from_pretrained(prepared / "tokenizer").save_pretrained(folder / "dense")
    factorize_directory(folder / "dense", folder / "gpt2", FactorizeConfig(rank=5))
    return {"lpa": run / "final", "gpt2": folder / "gpt2"}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (folder / "continuation.yaml").write_text(TASK.format(data=data))
    return folder


@pytest.fixture(scope="module")
def used_elsewhere(directories, task, without_package):
    done = without_package(USES, task, *directories.values())
    assert done.code == 0, done.stderr[-3000:]
    found = json.loads((task / "found.json").read_text())
    return {name: found[str(path)] for name, path in directories.items()}


KINDS = ("lpa", "gpt2")


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_says_what_it_says_with_this_package(used_elsewhere, directories, kind):
    pipe = pipeline("text-generation", str(directories[kind]))
    said = pipe("We the", max_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert used_elsewhere[kind]["text"] == said


def test_the_command_line_of_the_harness_scores_as_ours(used_elsewhere, directories, task):
    ours = run_harness(directories["lpa"], [str(task / "continuation.yaml")], device="cpu")
    for sample, theirs in zip(
        ours["samples"]["continuation"], used_elsewhere["lpa"]["scores"], strict=True
    ):
        mine = [float(choice[0][0]) for choice in sample["resps"]]
        assert mine == pytest.approx([float(choice[0][0]) for choice in theirs], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainer", ["SFT", "DPO"])
def test_trainers_of_trl_take_the_path(used_elsewhere, kind, trainer):
    """DPO without a reference model, which it opens by the path once more."""
    losses = used_elsewhere[kind][trainer]
    assert losses[-1] < losses[0]
    if trainer == "DPO":
        # Model and reference agree at first.
        assert losses[0] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-4)
