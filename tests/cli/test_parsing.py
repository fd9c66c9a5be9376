"""What no option accepts, whichever command it belongs to: walked over the parsers themselves."""

import importlib
import json
import re
from functools import cache
from typing import Any

import pytest

from lpa.cli import COMMANDS
from lpa.cli import train as train_command
from lpa.cli.parsing import PLACEMENTS, Parser
from lpa.errors import UserError
from lpa.model.configuration_lpa import PLACEMENTS as MODEL_PLACEMENTS
from lpa.train.config import RunConfig


@cache
def parser_of(command: str) -> Parser:
    return importlib.import_module(COMMANDS[command][0]).build_parser()


def minimal(parser: Parser, leave_out: Any) -> list[str]:
    """What the parser requires, except one action."""
    line: list[str] = []
    for action in parser._actions:
        if action is leave_out:
            continue
        value = str(next(iter(action.choices or ["1"])))
        if not action.option_strings and action.nargs != 0:
            line.append(value)
        elif action.required and action.option_strings:
            line += [action.option_strings[-1], value]
    return line


def numbers(command: str) -> list[Any]:
    """The options of a command that take numbers; what a recipe holds is the configuration's to check."""
    return [
        action
        for action in parser_of(command)._actions
        if isinstance(getattr(action, "_typehint", None), type)
        and issubclass(action._typehint, int | float)
        and action._typehint is not bool
        and "." not in action.dest
    ]


ALL_NUMBERS = [
    pytest.param(command, action.option_strings[-1], id=f"{command} {action.option_strings[-1]}")
    for command in COMMANDS
    for action in numbers(command)
]


def refusal(command: str, option: str, value: str, capsys) -> str:
    parser = parser_of(command)
    action = parser._option_string_actions[option]
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args([*minimal(parser, action), f"{option}={value}"])
    assert exit_.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def test_options_with_numbers_are_found():
    assert len(ALL_NUMBERS) > 45


@pytest.mark.parametrize(("command", "option"), ALL_NUMBERS)
def test_no_number_is_beyond_what_can_be_counted(command, option, capsys):
    for value in ("-1", "9223372036854775808", "1e308", "-1e308", "nan", "inf", "1e400", "", "x"):
        error = refusal(command, option, value, capsys)
        assert error.startswith(f"lpa: error: {option}: got {value or 'nothing'}; expected a ")
        assert "number from 0 to" in error or "number from 1 to" in error or "above 0" in error


def test_numbers_are_plain_ones():
    arguments = parser_of("generate").parse_args(["run", "--seed", "3", "--temperature", "1"])
    assert type(arguments.seed) is int
    assert type(arguments.temperature) is float
    arguments = parser_of("analyze").parse_args(["run", "--out", "x", "--ranks", "3", "4"])
    assert [type(rank) for rank in arguments.ranks] == [int, int]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_is_not_empty_and_text_is_unicode(command, capsys):
    for action in parser_of(command)._actions:
        if not action.option_strings or action.nargs == 0 or action.dest in ("help", "config"):
            continue
        option = action.option_strings[-1]
        assert "UTF-8" in refusal(command, option, "caf\udce9", capsys)
        if "Path" in str(getattr(action, "_typehint", "")):
            assert f"{action.dest.replace('_', '-')}: got nothing; expected a path" in refusal(
                command, option, "", capsys
            )


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ('data: {path: "a\\0b"}', "data.path"),
        ('train: {loggers: ["a\\0b"]}', "train.loggers"),
        ('model: {ranks: {"a\\0b": 1}}', "model.ranks"),
    ],
)
def test_text_of_a_recipe_is_unicode(recipe, key, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(SystemExit):
        parser_of("train").parse_args(["--data.path=x", f"--config={tmp_path / 'recipe.yaml'}"])
    assert capsys.readouterr().err == f"lpa: error: {key}: got 'a\\x00b'; expected text in UTF-8\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean lpa train?"),
        (["perplexity"], "did you mean lpa eval perplexity?"),
        (["eval", "perplexty"], "did you mean lpa eval perplexity?"),
        (["generate", "run", "--sed", "3"], "did you mean --seed?"),
        (["train", "--model.rnk", "3"], "did you mean --model.rank?"),
        (["convert", "factorize", "m", "--out", "o", "--method", "svg"], "did you mean svd?"),
        (["generate"], "got no MODEL; expected MODEL (a run directory or"),
        (["train"], "RECIPE: got nothing; expected a YAML file such as recipes/nano.yaml"),
        (["train", "--out", "run"], "expected --data.path (a prepared data directory)"),
        (["generate", "run", "more"], "unexpected argument more"),
    ],
)
def test_an_error_names_what_was_meant(arguments, words, lpa):
    finished = lpa(*arguments)
    assert finished.code == 2
    assert finished.stderr.count("\n") == 1
    assert words in finished.stderr


# A wrong choice of each kind: an option, a field of a recipe, a name that only the library knows.
WRONG_CHOICES = [
    ("plan nano --placement atention", "--placement: got atention", "attention"),
    ("presets --placement fnn", "--placement: got fnn", "ffn"),
    ("bench nano --placement atention", "--placement: got atention", "attention"),
    ("bench nanoo", "preset: got 'nanoo'", "nano"),
    ("plan nanoo", "model: got 'nanoo'", "nano"),
    ("convert gguf x --out y --dtype float61", "--dtype: got float61", "float16"),
    ("convert factorize x --rank 4 --budget-criterion lost --out y", "got lost", "loss"),
    ("convert factorize x --budget parameter=0.5 --out y", "got 'parameter'", "parameters"),
    ("study plcement --dry-run", "NAME: got plcement", "placement"),
    ("study placement --scale nanoo --dry-run", "--scale: got 'nanoo'", "nano"),
    ("study placement --variants denze --dry-run", "--variants: got 'denze'", "dense"),
    ("train --data.path {data} --out x --optim.name muonn", "optim.name: got muonn", "muon"),
    ("train --data.path {data} --out x --train.dtype float23", "train.dtype: got", "float32"),
    ("train --data.path {data} --out x --model.preset nanoo", "preset: got 'nanoo'", "nano"),
    ("train --data.path {data} --out x --model.placement fnn", "placement: got 'fnn'", "ffn"),
    ("train --data.path {data} --out x --train.loggers [wnadb]", "got 'wnadb'", "wandb"),
    ("runs x --sort perplexty", "--sort: got perplexty", "perplexity"),
    ("data show {data} --split tets", "has no 'tets'", "test"),
    ("prepare x --vocab-size 300 --boundary lime --out y", "--boundary: got lime", "line"),
    ("prepare x#boundary=lime --vocab-size 300 --out y", "boundary: got 'lime'", "line"),
    ("eval glue {data} --tasks sst22", "--tasks: got 'sst22'", "sst2"),
    ("eval perplexity x --data y --mode slidin", "--mode: got slidin", "sliding"),
    ("train --log-level inof", "--log-level: got inof", "info"),
]


@pytest.mark.parametrize(("line", "wrong", "meant"), WRONG_CHOICES)
def test_a_wrong_choice_names_the_one_meant(line, wrong, meant, lpa, prepared, tmp_path):
    finished = lpa(*line.format(data=prepared).split(), cwd=tmp_path)
    assert finished.code == 2
    assert finished.stderr.count("\n") == 1
    assert wrong in finished.stderr
    assert "one of" in finished.stderr
    assert finished.stderr.endswith(f"did you mean {meant}?\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        "train recipe.yaml --data.path {data} --out x",
        "train --data.path {data} --out x --model.hidden_size 250",
        "train --data.path {data} --out x --model.num_attention_heads 3 --dry-run",
        "plan config.json",
    ],
)
def test_a_width_that_does_not_divide_by_the_heads_is_refused(line, lpa, prepared, tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {hidden_size: 254}\n")
    fields = {"model_type": "lpa", "hidden_size": 250, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    finished = lpa(*line.format(data=prepared).split(), cwd=tmp_path)
    assert finished.code == 2
    assert "which is not divisible by num_attention_heads" in finished.stderr
    assert not (tmp_path / "x").exists()


def options_by_name() -> dict[str, dict[str, Any]]:
    """Option -> command -> its action; what a recipe holds apart."""
    options: dict[str, dict[str, Any]] = {}
    for command in COMMANDS:
        for action in parser_of(command)._actions:
            for option in action.option_strings:
                if "." not in action.dest and action.dest not in ("help", *train_command.SECTIONS):
                    options.setdefault(option, {})[command] = action
    return options


def kind_of(action: Any) -> object:
    return action.nargs == 0 or getattr(action, "_typehint", None) or action.type or "choice"


def test_an_option_means_the_same_in_every_command():
    """And no two differ by a plural alone, but for one of something and many of it."""
    options = options_by_name()
    assert len(options) > 60
    unlike = {"--ranks": "numbers, or a file of them", "--data": "text, or a folder of GLUE"}
    for option, actions in options.items():
        kinds = {str(kind_of(action)) for action in actions.values()}
        assert len(kinds) == 1 or option in unlike, (option, kinds)
    plurals = {name for name in options if f"{name}s" in options}
    assert plurals == {"--seed", "--rank", "--device"}


def test_the_placements_of_the_command_line_are_those_of_the_model():
    assert PLACEMENTS == MODEL_PLACEMENTS


@pytest.mark.parametrize("command", COMMANDS)
def test_overwrite_says_what_it_replaces(command):
    options = parser_of(command)._option_string_actions
    if "--overwrite" in options:
        [target] = re.findall(r"--\w+", options["--overwrite"].help)
        assert target in options


@pytest.mark.parametrize(("key", "meant"), [("rnak", "rank"), ("hidden", "hidden_size")])
def test_a_wrong_key_of_a_recipe_names_the_one_meant(key, meant, lpa, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"model:\n  {key}: 8\n")
    finished = lpa("train", "recipe.yaml", cwd=tmp_path)
    assert finished.code == 2
    assert finished.stderr.endswith(f"did you mean {meant}?\n")


def test_bare_lpa_and_bare_groups_print_help(lpa):
    assert lpa().code == 0
    assert lpa().stdout == lpa("--help").stdout
    for group in {command.split()[0] for command in COMMANDS if " " in command}:
        assert lpa(group).code == 0
        assert lpa(group).stdout == lpa(group, "--help").stdout


@pytest.mark.parametrize(
    "value",
    ["9" * 5000, "[" * 5000 + "]" * 5000, "{a: " * 1000 + "}" * 1000],
    ids=["a long number", "deep lists", "deep mappings"],
)
@pytest.mark.parametrize("option", ["train", "model.ranks", "train.loggers", "optim.lr"])
def test_what_yaml_cannot_hold_is_one_line(option, value, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser_of("train").parse_args(["--data.path=x", f"--{option}={value}"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("lpa: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "options", "steps", "batch_size"),
    [
        ("tokens: 1280", ["--train.steps", "3"], 3, 4),
        ("tokens: 1280", ["--train.steps=3"], 3, 4),
        ("tokens: 1280", [], 10, 4),
        ("batch_tokens: 256", ["--train.batch_size", "2"], 200, 2),
        ("steps: 7", ["--train.tokens", "1280"], 10, 4),
    ],
)
def test_an_option_beats_the_field_of_a_recipe_that_says_the_same(
    recipe, options, steps, batch_size, prepared, tmp_path
):
    name = "batch_size: 4, " if "batch" not in recipe else ""
    (tmp_path / "recipe.yaml").write_text(f"train: {{{name}{recipe}}}\n")
    argv = ["--config", str(tmp_path / "recipe.yaml"), "--data.seq_len", "32"]
    argv += ["--data.path", str(prepared), *options]
    parser = parser_of("train")
    arguments = parser.parse_args(argv)
    train_command.apply_option_precedence(arguments, argv)
    config = train_command.run_config(parser, arguments)
    assert (config.train.steps, config.train.batch_size) == (steps, batch_size)


@pytest.mark.parametrize("pair", [("steps", "tokens"), ("batch_size", "batch_tokens")])
def test_two_options_that_say_the_same_are_refused(pair, lpa, tmp_path):
    options = [word for name in pair for word in (f"--train.{name}", 64)]
    finished = lpa("train", "--data.path", tmp_path, "--out", tmp_path / "run", *options)
    assert finished.code == 2
    assert f"--train.{pair[0]}: got 64 beside --train.{pair[1]} 64" in finished.stderr


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (
            "steps: 30, tokens: 4096",
            "train.steps: got 30 beside train.tokens 4096, which makes it 16",
        ),
        (
            "batch_size: 3, batch_tokens: 256",
            "train.batch_size: got 3 beside train.batch_tokens 256, which makes it 8",
        ),
        ("steps: 16, tokens: 4096", None),  # as a resolved run has them
        ("batch_size: 8, batch_tokens: 256, steps: 2, tokens: 512", None),
    ],
)
def test_two_fields_of_a_recipe_that_contradict_are_refused(
    train, expected, lpa, prepared, tmp_path
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {{path: {prepared}, seq_len: 32}}\ntrain: {{{train}}}\n")
    planned = lpa("train", recipe, "--dry-run")
    if expected is None:
        RunConfig.load(recipe)
        assert planned.code == 0, planned.stderr
        return
    assert planned.stderr.startswith(f"lpa: error: RECIPE {recipe}: {expected}; expected one of")
    assert (planned.code, planned.stderr.count("\n")) == (2, 1)
    with pytest.raises(UserError, match=re.escape(expected)):
        RunConfig.load(recipe)
    field = expected.split(":")[0]
    assert lpa("train", recipe, "--dry-run", f"--{field}", 5).code == 0
