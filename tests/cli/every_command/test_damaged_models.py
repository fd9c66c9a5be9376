"""Every command that opens a model, on a directory damaged in every way: one line that names the file."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.damaged_models import CONFIGS, MARK, MODELS, WEIGHT_FILES
from helpers.small_runs import small_config, small_trainer

import lpa as package
from lpa.convert.factorize import FactorizeConfig, factorize_directory
from lpa.convert.merge import merge_directory
from lpa.display import console
from lpa.errors import UserError
from lpa.eval.analysis.analyze import analyze
from lpa.eval.compare import compare
from lpa.eval.generate import generate_text
from lpa.eval.glue.examples import Examples
from lpa.eval.glue.finetune import FineTuningConfig, fine_tune
from lpa.eval.glue.tasks import TASKS
from lpa.eval.loading import load_with_tokenizer
from lpa.eval.perplexity import evaluate_perplexity
from lpa.train.dry_run import plan_run

_FROM = {"hidden_size": None, "intermediate_size": None, "num_hidden_layers": None}
_FROM |= {"num_attention_heads": None, "rank": None}


def _glue(model: Path, _: Path, *, from_scratch: bool = False) -> None:
    some = Examples([("a b",), ("b a",)], [0, 1])
    fine_tune(
        *(
            model,
            TASKS["cola"],
            {"train": some, "validation": some},
            FineTuningConfig(batch_size=2),
        ),
        seed=0,
        from_scratch=from_scratch,
        device="cpu",
    )


# Command -> the function that it calls, given a model's directory and prepared data.
OF_CONFIGS: dict[str, Callable[[Path, Path], object]] = {
    "plan": lambda model, data: package.plan(model),
    "glue --from-scratch": lambda model, data: _glue(model, data, from_scratch=True),
    "train --dry-run --model.from": lambda model, data: plan_run(
        small_config(data, model=_FROM | {"from_": model})
    ),
}
OF_WEIGHT_FILES: dict[str, Callable[[Path, Path], object]] = {
    "train --dry-run --distill.teacher": lambda model, data: plan_run(
        small_config(data, distill={"teacher": model})
    ),
}
OF_MODELS: dict[str, Callable[[Path, Path], object]] = {
    "lpa.load": lambda model, data: package.load(model),
    "eval harness": lambda model, data: load_with_tokenizer(model, "cpu"),
    "eval perplexity": lambda model, data: evaluate_perplexity(model, data, device="cpu"),
    "eval compare": lambda model, data: compare(model, model, data, device="cpu"),
    "eval glue": _glue,
    "analyze": lambda model, data: analyze(model, model.parent / "out", device="cpu"),
    "generate": lambda model, data: generate_text(model, "a", max_new_tokens=2, device="cpu"),
    "convert factorize": lambda model, data: factorize_directory(
        model, model.parent / "out", FactorizeConfig(placement="ffn", rank=4)
    ),
    "convert merge": lambda model, data: merge_directory(model, model.parent / "out"),
    "train --distill.teacher": lambda model, data: small_trainer(data, distill={"teacher": model}),
    "train --model.from": lambda model, data: small_trainer(data, model=_FROM | {"from_": model}),
}
_NOT_GENERATING = {"eval glue", "train --model.from"}
EVERYTHING = OF_CONFIGS | OF_WEIGHT_FILES | OF_MODELS


@pytest.fixture
def model(run, tmp_path) -> Path:
    shutil.copytree(run / "final", tmp_path / "final")
    return tmp_path / "final"


@pytest.fixture(autouse=True, scope="module")
def no_bars():
    console.silence_transformers()


@pytest.fixture(autouse=True)
def no_question(monkeypatch):
    def ask(prompt: str = "") -> str:
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", ask)


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(command: str, open_: Callable, model: Path, data: Path, pattern: str) -> None:
    before = snapshot(model.parent)
    try:
        open_(model, data)
    except UserError as error:
        message = str(error)
    else:
        pytest.fail(f"{command} did not refuse")
    assert re.search(pattern, message), f"{command}: {message}"
    assert str(model) in message, f"{command}: {message}"
    assert len(message.splitlines()) == 1, f"{command}: {message}"
    assert len(message) < 600, f"{command}: {message}"
    assert snapshot(model.parent) == before, command


@pytest.mark.parametrize("command", EVERYTHING)
def test_a_whole_directory_opens(command, model, prepared):
    EVERYTHING[command](model, prepared)


@pytest.mark.parametrize("damage", CONFIGS)
def test_a_damaged_configuration(damage, model, prepared):
    change, pattern = CONFIGS[damage]
    change(model)
    for command, open_ in EVERYTHING.items():
        assert_refused(command, open_, model, prepared, pattern)


@pytest.mark.parametrize("damage", WEIGHT_FILES)
def test_damaged_files_of_weights(damage, model, prepared):
    change, pattern = WEIGHT_FILES[damage]
    change(model)
    for command, open_ in (OF_WEIGHT_FILES | OF_MODELS).items():
        assert_refused(command, open_, model, prepared, pattern)


@pytest.mark.parametrize("damage", MODELS)
def test_weights_that_are_not_those_of_the_configuration(damage, model, prepared):
    change, pattern = MODELS[damage]
    change(model)
    for command, open_ in OF_MODELS.items():
        if "generation" in damage and command in _NOT_GENERATING:
            continue
        assert_refused(command, open_, model, prepared, pattern)


def test_the_command_line_runs_no_code_for_a_yes(model, prepared):
    CONFIGS["custom code"][0](model)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lpa", "convert", "factorize", model),
            *("--rank", "4", "--out", model.parent / "out"),
        ],
        input="y\n" * 20,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(rf"lpa: error: model {model}/config.json: .*auto_map.*\n", done.stderr)
    assert not (model / MARK).exists()
    assert not (model.parent / "out").exists()


@pytest.mark.parametrize(
    ("command", "damage"),
    [
        (("plan", "MODEL"), "absurdly deep"),
        (("generate", "MODEL"), "truncated weights"),
        (("eval", "perplexity", "MODEL", "--data", "DATA"), "a missing tensor"),
        (("convert", "merge", "MODEL", "--out", "OUT"), "wide"),
        (("convert", "factorize", "MODEL", "--out", "OUT", "--rank", 4), "a pickle instead"),
    ],
)
def test_the_command_line_says_it_in_one_line(lpa, model, prepared, command, damage):
    change, pattern = (CONFIGS | WEIGHT_FILES | MODELS)[damage]
    change(model)
    before = snapshot(model.parent)
    places = {"MODEL": model, "DATA": prepared, "OUT": model.parent / "out"}
    done = lpa(*(places.get(word, word) for word in command))
    assert done.code == 2
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("lpa: error: ")]
    assert len(errors) == 1
    assert re.search(pattern, errors[0]), done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(model.parent) == before
