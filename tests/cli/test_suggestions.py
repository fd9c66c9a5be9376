"""What an error about an option says was probably meant."""

import importlib
import re
from functools import cache

import pytest

from lpa.cli import COMMANDS
from lpa.cli.parsing import Parser
from lpa.cli.train import SECTIONS


@cache
def parser_of(command: str) -> Parser:
    return importlib.import_module(COMMANDS[command][0]).build_parser()


def refusal(command: str, words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        parser_of(command).parse_args(words)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("lpa: error: ")
    assert error.count("\n") == 1
    return error


MEANT = [
    ("--data.dir x", "--data.path"),
    ("--data.pth x", "--data.path"),
    ("--data.context 3", "--data.seq_len"),
    ("--train.step 3", "--train.steps"),
    ("--optim.learning_rate 1", "--optim.lr"),
    ("--train.learning_rate 1", "--optim.lr"),
    ("--learning-rate 1", "--optim.lr"),
    ("--lr=1", "--optim.lr"),
    ("--rank 3", "--model.rank"),
    ("--modle.rank 3", "--model.rank"),
    ("--seq-len 3", "--data.seq_len"),
    ("--train.logers wandb", "--train.loggers"),
    ("--overwirte", "--overwrite"),
]


@pytest.mark.parametrize(("words", "meant"), MEANT)
def test_an_option_of_no_section_or_another_is_a_whole_one(words, meant, capsys):
    assert refusal("train", words.split(), capsys).endswith(f"did you mean {meant}?\n")


@pytest.mark.parametrize("words", ["--train.zzz 3", "--zzz 3", "--modle nano"])
def test_nothing_is_guessed_where_nothing_is_near(words, capsys):
    assert "did you mean" not in refusal("train", words.split(), capsys)


OF_SECTIONS = [
    ("data", "folder", "--data.path folder"),
    ("data", "nowhere", "--data.path nowhere"),
    ("model", "nano", "--model.preset nano"),
    ("model", "folder", "--model.from folder"),
    ("model", "8", "--model.rank 8"),
    ("optim", "muon", "--optim.name muon"),
    ("optim", "1e-3", "--optim.lr 1e-3"),
    ("train", "100", "--train.steps 100"),
    ("checkpoint", "5", "--checkpoint.every 5"),
    ("parallel", "2", "--parallel.replicate 2"),
    ("distill", "parent", "--distill.teacher parent"),
]


def test_all_sections_are_tried():
    assert {section for section, *_ in OF_SECTIONS} == set(SECTIONS)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(("section", "value", "meant"), OF_SECTIONS)
def test_a_section_with_a_value_names_the_option_meant(
    section, value, meant, joined, tmp_path, monkeypatch, capsys
):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    words = [f"--{section}={value}"] if joined else [f"--{section}", value]
    error = refusal("train", words, capsys)
    assert f"--{section}: got {value}; {section} is a section of the recipe" in error
    assert error.endswith(f"did you mean {meant}?\n")


@pytest.mark.parametrize("value", ["recipe.yaml", "{rank:8}", "[1", ""])
def test_a_section_with_what_no_option_accepts(value, capsys):
    error = refusal("train", [f"--data={value}"], capsys)
    assert "data is a section of the recipe, so expected one of its options" in error


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_with_nothing_after_it_says_what_it_accepts(command, capsys):
    for action in parser_of(command)._actions:
        if action.nargs in (0, "?", "*") or action.dest.startswith("print_"):
            continue
        for option in action.option_strings:
            error = refusal(command, [option], capsys)
            shown = re.escape(option.rstrip("+"))  # which jsonargparse adds to lists
            assert re.match(rf"lpa: error: {shown}: got nothing; .*expected .+", error), error
            assert "None" not in error


@pytest.mark.parametrize("value", ["d/4", "3d/8", "f"])
def test_an_expression_of_studies_is_explained(value, capsys):
    words = ["--data.path", "x", "--model.rank", value]
    error = refusal("train", words, capsys)
    assert (
        f"model.rank: got {value}; expected a whole number or null; {value} has a meaning" in error
    )
    assert "hidden_size" in error


def test_an_expression_of_studies_in_a_recipe_is_explained(lpa, tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {rank: d/4}\n")
    finished = lpa("train", "recipe.yaml", cwd=tmp_path)
    assert "model.rank: got 'd/4'; expected a whole number or null; d/4 has a" in finished.stderr
    assert (finished.code, finished.stderr.count("\n")) == (2, 1)


def test_no_option_is_given_by_its_beginning():
    """Other code looks for options by their whole names, and would pass over the rest."""
    assert not any(parser_of(command).allow_abbrev for command in COMMANDS)
