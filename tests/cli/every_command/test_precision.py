"""`--device` and `--dtype`: the same of every command that computes with a model."""

import importlib
import json

import pytest
import torch
from helpers.harness_task import TASK
from helpers.matrix_products import MatrixProducts

from lpa.cli import COMMANDS
from lpa.device import resolve_device, resolve_dtype

# What each command is tried with; `{…}` are the fixtures below. The key says which commands there are.
ARGUMENTS = {
    "eval perplexity": "{run} --data {data}",
    "eval compare": "{run} {run} --data {data} --seq-len 16",
    "eval minimal-pairs": "{run} --pairs {pairs}",
    "eval glue": "{run} --tasks sst2 --data {glue} --seeds 1 --epochs 1 --max-length 16 --out {out}",
    "eval harness": "{run} --tasks {task}",
    "analyze": "{run} --data {data} --tokens 64 --ranks 2 --out {out}",
    "generate": "{run} --prompt fellow --max-new-tokens 3",
    "bench": "nano --seq-len 8 --batch-size 1 --rounds 1",
}


@pytest.fixture(scope="module")
def material(run, prepared, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("material")
    pair = {"sentence_good": "the cats sit", "sentence_bad": "the cats sits", "UID": "agreement"}
    (folder / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    question = {"question": "My fellow", "choices": ["citizens", "bananas"], "answer": 0}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    (folder / "task.yaml").write_text(TASK.format(data=folder / "questions.jsonl"))
    (folder / "glue" / "SST-2").mkdir(parents=True)
    for name in ("train", "dev"):
        table = "sentence\tlabel\na cat\t1\na dog\t0\n"
        (folder / "glue" / "SST-2" / f"{name}.tsv").write_text(table)
    return {
        "run": run,
        "data": prepared,
        "pairs": folder / "pairs.jsonl",
        "task": folder / "task.yaml",
        "glue": folder / "glue",
    }


def options_of(command: str) -> dict:
    parser = importlib.import_module(COMMANDS[command][0]).build_parser()
    return {action.dest: action for action in parser._actions}


def test_whatever_takes_a_model_to_compute_with_takes_both_options():
    """Commands that only rewrite a checkpoint keep its dtype, and training has fields of the recipe."""
    found = {name for name in COMMANDS if "dtype" in options_of(name)}
    with_device = {name for name in COMMANDS if "device" in options_of(name)}
    assert found >= set(ARGUMENTS)
    assert with_device - found == {"convert factorize"}
    assert found - with_device == {"plan", "convert gguf"}  # of figures, and of a file


@pytest.mark.parametrize("option", ["device", "dtype"])
def test_the_option_reads_alike_everywhere(option):
    texts = {
        (action.help, action.default, tuple(action.choices or ()))
        for name in ARGUMENTS
        for action in [options_of(name)[option]]
    }
    assert len(texts) == 1


def test_the_choices_are_what_the_library_accepts():
    for name in options_of("generate")["dtype"].choices:
        assert resolve_dtype(name, "cpu") in (torch.float32, torch.bfloat16)
    assert resolve_device(options_of("generate")["device"].default)


@pytest.mark.parametrize(
    ("command", "dtype"),
    [
        (command, dtype)
        for command in ARGUMENTS
        for dtype in ("float32", "bfloat16")
        if (command, dtype) != ("bench", "float32")  # which takes its time
    ],
)
def test_the_precision_that_was_asked_for_is_multiplied_in(
    command, dtype, material, tmp_path, capsys, forked_children
):
    arguments = [
        word.format(**material, out=tmp_path / "out") for word in ARGUMENTS[command].split()
    ]
    with MatrixProducts() as products:
        importlib.import_module(COMMANDS[command][0]).main(
            [*arguments, "--device", "cpu", "--dtype", dtype, "--json"]
        )
    assert json.loads(capsys.readouterr().out)
    in_any = {torch.float64} if command == "analyze" else set()  # singular values
    assert products.dtypes - in_any == {getattr(torch, dtype)}
