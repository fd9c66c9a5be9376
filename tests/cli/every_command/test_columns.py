"""Every table fits a terminal of 80 columns, with no word truncated."""

import re
from collections import Counter

import pytest

import lpa.cli
from lpa.eval.glue.run_glue import Score, TaskResult
from lpa.model import parameter_count, preset_config
from lpa.train.run_table import RunRow

TABLES = [
    "presets",
    "plan 3b",
    "plan pico --rivals",
    "plan paper-370m-s1 --placement all --match params",
    "runs .",
    *(f"study {name} --scale 130m --dry-run" for name in ("placement", "surplus", "rivals")),
    "train recipes/3b.yaml --data.path data --dry-run",
]


@pytest.mark.parametrize("line", TABLES)
def test_a_table_fits_80_columns(line, lpa, run, request):
    cwd = run.parent if line.startswith("runs") else request.config.rootpath
    finished = lpa(*line.split(), cwd=cwd, environment={"COLUMNS": "80"})
    assert finished.code == 0, finished.stderr
    table = [text for text in finished.stdout.splitlines() if "variants x" not in text]
    assert max(map(len, table)) <= 80
    assert "…" not in finished.stdout


@pytest.fixture
def table_of(monkeypatch, capsys):
    """What a command prints in 80 columns where a function returns a result."""

    def print_table(line: str, function: str, result) -> str:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(function, lambda *_, **__: result)
        lpa.cli.main(line.split())
        output = capsys.readouterr().out
        assert max(map(len, output.splitlines())) <= 80
        return output

    return print_table


WIDE_RUN = {
    "name": "runs/demo/lpa",
    "placement": "attention",
    "rank": "64",
    "parameters": 3_690_000,
    "state": "checkpoint at step 1,000 of 4,000",
    "steps": 4000,
    "tokens": 614_400,
    "loss": 4.123,
    "perplexity": 1067.68,
    "tokens_per_second": 5112.0,
    "seconds": 12_500.0,
}


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, "attention 3.69M 4,000 614K 4.123 1,067.68 5,112 3 h 28 min"),
        ({}, "runs/demo/lpa: checkpoint at step 1,000 of 4,000"),
        ({"name": "runs/lpa"}, "runs/lpa attention 3.69M 4,000"),
        ({"state": "finished", "seconds": 3599.0}, "1,067.68 5,112 59 min 59 s"),
        ({"perplexity": 9_999.99, "seconds": 80_000.0}, "4.123 9,999.99 5,112 22 h 13 min"),
        ({"perplexity": 162_754.79}, "4.123 163K 5,112 3 h 28 min"),
        ({"perplexity": float("inf"), "loss": float("nan")}, "nan inf 5,112"),
        ({"loss": 123.456, "seconds": 3599.0}, "123.5 1,067.68 5,112 59 min 59 s"),
        ({"placement": "by projection", "rank": "16–128"}, "16–128"),
        ({"state": "finished", "problem": "result.json: lost"}, "lpa: finished; result.json: lost"),
    ],
)
def test_the_table_of_runs_loses_no_character(table_of, fields, shown):
    row = RunRow(**WIDE_RUN | fields)
    output = table_of("runs .", "lpa.train.run_table.list_runs", [row])
    assert shown in " ".join(output.split())
    assert Counter(f"{row.name}{row.placement}{row.rank}".replace(" ", "")) <= Counter(output)


def test_a_table_folds_long_names(table_of):
    tasks = {
        name: {"acc,flexible-extract": 0.1234, "acc_stderr,flexible-extract": 0.0567}
        for name in ("mmlu_high_school_government_and_politics", "lambada_openai")
    }
    harness = table_of(
        "eval harness m --tasks t",
        "lpa.eval.harness.run_harness",
        {"results": tasks, "n-shot": dict.fromkeys(tasks, 5)},
    )
    assert Counter("".join(tasks)) <= Counter(harness)
    assert harness.count("0.1234") == harness.count("0.0567") == 2

    models = {
        f"runs/contest/pico-{name}": {"accuracy": Score(0.8123, 0.0123, [0.8, 0.82])}
        for name in ("dense-seed-0", "lpa-seed-0", "dense-seed-1", "lpa-seed-1")
    }
    glue = table_of(
        "eval glue m --tasks rte",
        "lpa.eval.glue.run_glue.run_glue",
        {"rte": TaskResult({}, {"accuracy": 0.5}, models)},
    )
    assert Counter("".join(models)) <= Counter(glue)
    assert glue.count("81.2") == 4


COUNTING = [
    "data stats {prepared}",
    "prepare text.txt --vocab-size 300 --out data",
    "eval perplexity {run} --data text.txt",
    "eval compare {run} {run} --data text.txt",
    "push {run} somebody/model --dry-run",
]


@pytest.mark.parametrize("line", COUNTING)
def test_counts_are_in_units(line, lpa, run, prepared, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"word {n} of many\n" for n in range(2000)))
    finished = lpa(*line.format(run=run, prepared=prepared).split(), cwd=tmp_path)
    assert finished.code == 0, finished.stderr
    assert not re.search(r"\d\d,\d{3}", finished.stdout)
    assert re.search(r"\d(K| KiB)\b", finished.stdout)


def test_numbers_are_in_units_and_json_is_exact(lpa):
    table, exact = lpa("plan", "130m").stdout, lpa("plan", "130m", "--json").json
    assert exact["parameters"]["total"] == parameter_count(preset_config("130m"))
    assert not re.search(r"\d,\d{3},\d{3}", table)
    assert " GiB" in table or " MiB" in table
