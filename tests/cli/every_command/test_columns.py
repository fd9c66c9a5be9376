"""Every table fits a terminal of 80 columns, with no word truncated."""

import re

import pytest

from lpa.model import parameter_count, preset_config

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
