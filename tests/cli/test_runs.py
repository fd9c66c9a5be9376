import json
import shutil

import pytest

from lpa.train.config import RunConfig
from lpa.train.run_table import RunRow, read_run, sort_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run, prepared, tiny, lpa):
    """A finished run, a dense one stopped halfway, and ones that are broken in several ways."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(run, root / "lpa")
    stopped = lpa(
        *("train", "--data.path", prepared, "--out", root / "deeper" / "dense", *tiny),
        *("--train.steps", 8, "--train.stop_at", 5, "--train.log_every", 2),
        *("--train.eval_every", 4, "--train.eval_tokens", 500, "--model.placement", "none"),
    )
    assert stopped.code == 0, stopped.stderr
    started = root / "started"
    started.mkdir()
    shutil.copy(run / "config.yaml", started)
    (started / "metrics.jsonl").write_text('{"step": 1, "loss": 5.5, "tok')  # killed as it wrote
    bad_result = shutil.copytree(run, root / "bad-result")
    (bad_result / "result.json").write_text('{"steps": 8, "tok')
    bad_config = shutil.copytree(run, root / "bad-config[red]")
    (bad_config / "config.yaml").write_text("model: [unclosed")
    bad_metrics = shutil.copytree(run, root / "bad-metrics")
    (bad_metrics / "metrics.jsonl").write_bytes(b"\xff\xfe\n" * 3)
    odd = shutil.copytree(run, root / "odd")
    (odd / "result.json").write_text('{"steps": "many", "wall_seconds": Infinity, "validation": 3}')
    return root


def test_rows_of_whole_and_broken_runs(runs, lpa):
    finished = lpa("runs", runs, "--json")
    assert finished.code == 0, finished.stderr
    rows = {row["name"].removeprefix(f"{runs}/"): row for row in finished.json["runs"]}
    assert list(rows) == sorted(rows)

    result = json.loads((runs / "lpa" / "result.json").read_text())
    done = rows["lpa"]
    assert done["state"] == "finished"
    assert (done["placement"], done["rank"]) == ("attention", "8")
    assert done["parameters"] == result["parameters"]
    assert (done["steps"], done["tokens"]) == (8, 8 * 4 * 32)
    assert done["perplexity"] == result["validation"]["perplexity"]
    assert done["tokens_per_second"] == result["tokens_per_second"]
    assert done["seconds"] == result["wall_seconds"]
    records = (runs / "lpa" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in records if '"loss"' in line]
    assert done["loss"] == losses[-1]

    dense = rows["deeper/dense"]
    assert dense["state"] == "checkpoint at step 5 of 8"
    assert (dense["placement"], dense["rank"], dense["parameters"]) == ("none", None, None)
    assert (dense["steps"], dense["tokens"]) == (4, 4 * 4 * 32)  # of the last record
    assert dense["perplexity"] > 1

    assert rows["started"]["state"] == "no checkpoint yet"
    assert rows["started"]["loss"] is None
    problems = {name: row["problem"] for name, row in rows.items() if row["problem"]}
    assert problems == {
        "bad-config[red]": "config.yaml: is not YAML (line 1: expected ',' or ']', but got '<stream end>')",
        "bad-metrics": "metrics.jsonl: line 1: is not JSON (not UTF-8: invalid start byte at byte 0)",
        "bad-result": "result.json: is not JSON (Unterminated string starting at: "
        "line 1 column 14 (char 13))",
        "odd": "result.json: steps: got 'many'; expected a whole number from 0",
    }
    assert rows["bad-config[red]"]["loss"] == done["loss"]
    assert rows["odd"]["steps"] == 8  # as its records say


def test_the_table(runs, lpa):
    finished = lpa("runs", ".", cwd=runs)  # short names, which no column folds
    assert finished.code == 0, finished.stderr
    for text in (
        "checkpoint at step 5 of 8",
        "bad-config[red]",
        "result.json: is not JSON",
        "1,024",
        "ppl",
    ):
        assert text in " ".join(finished.stdout.split())


def test_sorting_puts_what_is_unknown_last(runs, lpa):
    rows = lpa("runs", runs, "--sort", "seconds", "--json").json["runs"]
    known = [row["seconds"] for row in rows if row["seconds"] is not None]
    assert len(known) >= 2
    assert [row["seconds"] for row in rows[: len(known)]] == sorted(known)


def test_a_run_named_twice_is_shown_once(runs, lpa):
    rows = lpa("runs", runs / "lpa", runs / "lpa", "--json").json["runs"]
    assert [row["name"] for row in rows] == [str(runs / "lpa")]


@pytest.mark.parametrize(
    ("field", "ordered"),
    [
        ("rank", ["8", "8–64", "16 / 8", "16 / 32", "128", "preset", None]),
        (
            "state",
            [
                *("checkpoint at step 900 of 1,000", "checkpoint at step 1,000 of 1,000"),
                *("checkpoint at step 1,000 of 10,000", "finished", "no checkpoint yet"),
            ],
        ),
    ],
)
def test_numbers_in_text_are_sorted_as_numbers(field, ordered):
    rows = [RunRow("run", **{field: value}) for value in sorted(ordered, key=str, reverse=True)]
    assert [getattr(row, field) for row in sort_runs(rows, field)] == ordered


def test_links_to_runs_are_followed_once_and_no_further(run, tmp_path, lpa):
    shown = tmp_path / "shown"
    shutil.copytree(run, shown / "real")
    shutil.copytree(run, tmp_path / "scratch" / "far")
    for name, target in {
        "another-name": shown / "real",  # shown by its own
        "far": tmp_path / "scratch" / "far",
        "not-searched": tmp_path / "scratch",
        "circle": shown,
        "itself": shown / "itself",
        "gone": tmp_path / "gone",
        "file": run / "config.yaml",
    }.items():
        (shown / name).symlink_to(target)
    finished = lpa("runs", shown, "--json")
    assert finished.code == 0, finished.stderr
    assert [row["name"] for row in finished.json["runs"]] == [f"{shown}/far", f"{shown}/real"]
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "far").symlink_to(tmp_path / "scratch" / "far")
    rows = lpa("runs", tmp_path / "links", tmp_path / "scratch", shown / "far", "--json").json
    assert [row["name"] for row in rows["runs"]] == [f"{tmp_path}/scratch/far"]


def test_no_runs(tmp_path, lpa):
    empty = lpa("runs", tmp_path)
    assert (empty.code, empty.stdout) == (2, "")
    assert empty.stderr == (
        f"lpa: error: DIR {tmp_path}: holds no run; expected directories with a config.yaml\n"
    )
    missing = lpa("runs", tmp_path / "nowhere")
    assert missing.code == 2
    assert "no such directory" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"placement": "none"}, ("none", None)),
        ({"placement": "all"}, ("all", "preset")),
        ({"placement": "all", "rank": 8, "ffn_rank": 16}, ("all", "8 / 16")),
        ({"ranks": {"q_proj": 8, "up_proj": None}}, ("by projection", "8")),
        ({"ranks": {"q_proj": [4, 8], "o_proj": 16}}, ("by projection", "4–16")),
        ({"ranks": {"q_proj": None}}, ("by projection", None)),
    ],
)
@pytest.mark.parametrize("is_source", [False, True])
def test_the_model_is_the_one_that_is_trained(tmp_path, model, expected, is_source):
    """That of the recipe, or the one that the run started from, of which the recipe says nothing."""
    given = {"from": "converted"} if is_source else model
    config = RunConfig.from_dict({"data": {"path": "data"}, "model": given})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    if is_source:
        source = {"sha256": "0" * 64, "config": {"model_type": "lpa", **model}, "generation": {}}
        (tmp_path / "initial_weights.json").write_text(json.dumps(source))
    row = read_run(tmp_path, "run")
    assert row.problem == ""
    assert (row.placement, row.rank) == expected


@pytest.mark.parametrize("content", ["null", "{}", '{"config": 3}', '{"config": {"rank": "x"}}'])
def test_a_damaged_file_of_the_source_is_named(tmp_path, content):
    config = RunConfig.from_dict({"data": {"path": "data"}, "model": {"from": "converted"}})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "initial_weights.json").write_text(content)
    assert read_run(tmp_path, "run").problem.startswith("initial_weights.json: ")
