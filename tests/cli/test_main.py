import importlib
import re
import resource
import subprocess
import sys
from contextlib import suppress

import pytest

from lpa.cli import COMMANDS, GROUPS, main

COMMANDS_AND_GROUPS = [*COMMANDS, *GROUPS, ""]

# What a parser says of itself and no reader asks for.
NOISE = (
    "(type:",
    "default: null",
    "default: None",
    "configuration file",
    "<class",
    "=flags",
    "SUPPRESS",
)


@pytest.fixture
def help_of(capsys, monkeypatch):
    """What `--help` of a command prints in a terminal of some width."""

    def print_help(command: str, columns: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        with suppress(SystemExit):
            main([*command.split(), "--help"])
        return capsys.readouterr().out

    return print_help


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("command", COMMANDS_AND_GROUPS)
def test_help_fits_a_terminal_and_is_free_of_noise(help_of, command, columns):
    text = help_of(command, columns)
    assert text.startswith(f"usage: lpa {command}".rstrip())
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert [word for word in NOISE if word in text] == []


@pytest.mark.parametrize("command", COMMANDS_AND_GROUPS)
def test_help_states_a_purpose_in_sentences(help_of, command):
    _, purpose, _ = help_of(command).split("\n\n", 2)
    assert purpose[0].isupper()
    assert purpose.endswith(".")
    assert len(purpose.split()) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(help_of, command):
    examples = help_of(command).split("examples:\n")[1].replace("\\\n", "").strip().splitlines()
    assert len(examples) >= 2
    assert all(line.strip().startswith(f"lpa {command}") for line in examples)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_argument_in_a_sentence(help_of, command):
    """And names those that a command needs in its usage, and the recipe of `train` with them."""
    text = help_of(command)
    usage = text.split("\n\n")[0]
    parser = importlib.import_module(COMMANDS[command][0]).build_parser()
    formatter = parser._get_formatter()
    for action in parser._actions:
        if type(action).__name__ == "_ActionConfigLoad":  # of a section; it is not shown
            continue
        sentence = formatter._expand_help(action)
        assert sentence[0].isupper() or not sentence[0].isalpha(), sentence
        assert sentence.endswith((".", "?")), sentence
        assert len(sentence.split()) >= 2, (action.dest, sentence)
        if not action.option_strings:
            assert action.metavar in usage
            assert f"\n  {action.metavar}" in text
    if command == "train":
        assert "\narguments:\n  RECIPE" in text


def test_help_names_a_default_that_there_is_and_no_other(help_of):
    words = " ".join(help_of("generate").split())
    assert "hold this probability. Default: 0.95." in words
    assert "Print one JSON object and nothing else. " in f"{words} "
    assert "Default: ." not in words
    words = " ".join(help_of("train").split())
    assert "samples ahead of time; 0: the training process reads. Default: 0." in words
    assert "Whether to compare the checksums" in words
    assert "Default: true." in words


def test_help_says_what_every_setting_of_a_recipe_means(help_of):
    words = " ".join(help_of("train").split())
    settings = re.findall(r"--([a-z]+\.[a-z_0-9]+) \S+ ([A-Z])", words)
    assert len(settings) > 70


def test_help_lists_every_command(lpa):
    finished = lpa("--help")
    assert finished.code == 0
    for command, (_, line) in COMMANDS.items():
        assert f"{command} " in finished.stdout
        assert line in finished.stdout


def test_help_answers_without_torch():
    script = "import sys\nfrom lpa.cli import main\nmain(['--help'])\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


def test_help_answers_in_under_0_3_seconds():
    def once() -> float:
        """In CPU time, which other tests that keep the machine busy do not lengthen."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "lpa", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(3)) < 0.3


def test_version(lpa):
    import lpa as package

    assert lpa("--version").stdout.strip() == f"lpa {package.__version__}"


def test_a_group_lists_its_commands(lpa):
    finished = lpa("eval", "--help")
    assert finished.code == 0
    assert "eval perplexity" in finished.stdout
    assert "prepare" not in finished.stdout


@pytest.mark.parametrize("arguments", [["trian"], ["eval", "perplexiti"]])
def test_an_unknown_command_is_refused_and_the_known_named(lpa, arguments):
    finished = lpa(*arguments)
    assert finished.code == 2
    assert finished.stderr.count("\n") == 1
    assert f"unknown command '{' '.join(arguments)}'; expected one of" in finished.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--foo", "unknown option --foo; `lpa --help` lists what is accepted"),
        ("--foo plan nano", "unknown option --foo; `lpa --help` lists what is accepted"),
        ("eval --foo", "unknown option --foo; `lpa --help` lists what is accepted"),
        ("--help plan", "--help: stands before the command; expected lpa plan --help"),
        ("--version plan", "--version: takes no command; expected lpa --version"),
    ],
)
def test_an_option_without_a_command_is_refused(lpa, line, message):
    finished = lpa(*line.split())
    assert (finished.code, finished.stdout) == (2, "")
    assert finished.stderr == f"lpa: error: {message}\n"
