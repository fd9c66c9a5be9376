"""Every command with streams, a terminal and a home directory as other machines and pipelines have them.

No home directory can be written in any of these tests: see the fixture `fuzzer`.
"""

import json

import pytest
from fuzz.material import LINES

from lpa.cli import COMMANDS

pytestmark = pytest.mark.xdist_group("fuzz")

# The line of `demo` is refused, as it takes long; tests/study/demo has it on a narrow terminal.
QUICK = {command: LINES[command] for command in COMMANDS if command != "demo"}
STOPPED = [
    "train recipe.yaml --data.path data --out out --train.stop_at 1",
    "train recipe.yaml --data.path data --out out --train.steps 1000000 --train.max_seconds 0.01",
    "train recipe.yaml --data.path data --dry-run",
]


@pytest.fixture
def run(fuzzer, tmp_path):
    """Run a line in a copy of the material."""

    def run_line(line: str, **conditions: object):
        place = tmp_path / "place"
        fuzzer.copy(place)
        finished = fuzzer.lpa(*line.split(), cwd=place, **conditions)
        assert "Traceback" not in finished.stderr
        assert "Exception ignored" not in finished.stderr
        return finished

    return run_line


@pytest.mark.parametrize("line", [*QUICK.values(), *STOPPED])
def test_json_is_one_object(run, line):
    finished = run(f"{line} --json")
    assert finished.code == 0, finished.stderr
    assert isinstance(json.loads(finished.stdout, parse_constant=pytest.fail), dict)
    assert finished.stdout.count("\n") == 1


@pytest.mark.parametrize("line", [*QUICK.values(), *STOPPED])
def test_a_narrow_terminal_that_knows_ascii_alone(run, line):
    finished = run(line, environment={"COLUMNS": "40", "PYTHONIOENCODING": "ascii"})
    assert finished.code == 0, finished.stderr
    assert finished.stdout.isascii()
    assert finished.stdout.strip()


@pytest.mark.parametrize("line", [*QUICK.values(), *STOPPED])
def test_a_reader_that_has_ended(run, line):
    """As `| head -1` leaves it, only sooner."""
    finished = run(line, stdout="broken")
    assert finished.code == 141, finished.stderr
    assert "Broken pipe" not in finished.stderr


@pytest.mark.parametrize("line", [*QUICK.values(), *STOPPED])
def test_a_standard_output_that_is_closed(run, line):
    assert run(line, stdout="closed").code == 0


def test_characters_that_a_terminal_does_not_know_are_escaped(run):
    finished = run(
        "generate run --prompt é --max-new-tokens 1 --device cpu",
        environment={"PYTHONIOENCODING": "ascii"},
    )
    assert finished.code == 0, finished.stderr
    assert finished.stdout.startswith("\\xe9")


def test_a_run_becomes_a_gguf_file_only_when_merged(run):
    finished = run("convert gguf run --out out.gguf")
    assert finished.code == 2
    assert "merge it first: lpa convert merge run --out merged" in finished.stderr
