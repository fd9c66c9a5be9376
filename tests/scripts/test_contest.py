"""scripts/contest and scripts/transfer_rates: no stage takes rates of a tuning that is not whole."""

import json
import re
import runpy
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml
from commands import Finished
from commands.program_shell import Shell

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "contest"


@pytest.fixture
def contest(tmp_path):
    """Runs the script on stand-ins for `lpa` and Python; how it ended, and the calls of these.

    A tuning at a length in `whole` writes its file.
    """
    calls = []
    whole = {2, 6}

    def answer(program: str, arguments: list[str], cwd: Path) -> Finished:
        calls.append([program, *arguments])
        if "--tune" in arguments:
            out = cwd / arguments[arguments.index("--out") + 1]
            if int(out.name[-1]) not in whole:
                return Finished(1, "", "lpa: nothing tuned\n")
            out.mkdir(parents=True, exist_ok=True)
            (out / "tuned-rivals-pico.yaml").write_text("dense: {optim.lr: 0.004}\n")
        return Finished(0, "{}", "")

    shell = Shell(tmp_path, ("lpa", "python"), answer, {})
    (tmp_path / "data-wikitext-2.jsonl").write_text('{"text": "A text."}\n')

    def run(data: str = "data") -> tuple[Finished, list[list[str]]]:
        calls.clear()
        return shell.run(f"bash {SCRIPT} {data} out", tmp_path), calls

    run.whole = whole
    yield run
    shell.close()


def test_stages_follow_each_other_and_a_slash_after_the_data_means_nothing(contest, tmp_path):
    scored = tmp_path / "out" / "pico-length-2" / "runs" / "one"
    (scored / "final").mkdir(parents=True)
    done, calls = contest("data/")
    assert done.code == 0, done.stderr
    studies = [Path(call[call.index("--out") + 1]).name for call in calls if call[1] == "study"]
    assert list(dict.fromkeys(studies)) == [
        *("pico-tuning-2", "pico-length-2", "pico-tuning-6", "pico-length-20", "pico-length-6")
    ]
    names = {call[call.index("--data") + 1] for call in calls if "--data" in call}
    assert names == {"data", "data-wikitext-2.jsonl"}
    assert {path.name for path in (scored / "scores").iterdir()} == {
        *("minimal-pairs.json", "wikitext-2.json")
    }


def test_nothing_begins_without_the_second_test_set(contest, tmp_path):
    (tmp_path / "data-wikitext-2.jsonl").unlink()
    done, calls = contest()
    assert done.code == 2
    assert done.stderr.count("\n") == 1
    assert "contest: found no data-wikitext-2.jsonl" in done.stderr
    assert calls == []


@pytest.mark.parametrize("lost", [2, 6])
def test_a_tuning_with_lost_trials_ends_it_whatever_an_earlier_start_tuned(contest, lost):
    assert contest()[0].code == 0
    contest.whole.remove(lost)
    done, calls = contest()
    assert done.code == 2
    assert f"the tuning at {lost} tokens per parameter wrote no " in done.stderr
    assert calls[-1][calls[-1].index("--out") + 1] == f"out/pico-tuning-{lost}"


@pytest.fixture
def tuning(tmp_path):
    """The recorded one at 2 tokens per parameter, and beside it a copy, `whole`."""
    with tarfile.open(ROOT / "docs" / "records" / "contest.tar.xz") as records:
        members = [entry for entry in records if entry.name.startswith("pico-tuning-2/")]
        records.extractall(tmp_path, members, filter="data")
    shutil.copytree(tmp_path / "pico-tuning-2", tmp_path / "whole")
    return tmp_path / "pico-tuning-2"


@pytest.fixture
def transfer(tuning, lpa):
    """Runs the script with that tuning as the second; how it ended."""

    def run() -> Finished:
        whole = tuning.with_name("whole")
        options = ("--tuned", whole / "tuned-rivals-pico.yaml", "--to", "20:rates.yaml")
        script = ROOT / "scripts" / "transfer_rates"
        return lpa(f"{whole}:2", f"{tuning}:6", *options, script=script, cwd=tuning.parent)

    return run


def run_of(tuning, trial):
    index = json.loads((tuning / "rivals-tuning-pico.json").read_text())
    return next(tuning / "runs" / run["run"] for run in index["runs"] if run["variant"] == trial)


def test_rates_of_two_whole_tunings_are_written(transfer, tuning):
    done = transfer()
    assert done.code == 0, done.stderr
    assert "dense: best rate 0.003" in done.stdout
    assert "no neighbor" not in done.stdout
    rates = yaml.safe_load((tuning.parent / "rates.yaml").read_text())
    assert rates == yaml.safe_load((tuning / "tuned-rivals-pico.yaml").read_text())


@pytest.mark.parametrize(
    ("trial", "file", "content", "words"),
    [
        ("dense, lr=0.016", "test.json", None, "not finished and did not diverge"),
        ("SLTrain, lr=0.004", "result.json", "{", "result.json: is not JSON"),
    ],
)
def test_a_tuning_with_a_lost_trial_is_refused(transfer, tuning, trial, file, content, words):
    path = run_of(tuning, trial) / file
    path.unlink() if content is None else path.write_text(content)
    done = transfer()
    assert done.code == 2
    assert done.stderr.count("\n") == 1
    assert trial in done.stderr
    assert words in done.stderr
    assert not (tuning.parent / "rates.yaml").exists()


def diverge(tuning, trial):
    run = run_of(tuning, trial)
    (run / "test.json").unlink()
    (tuning / "logs").mkdir(exist_ok=True)
    (tuning / "logs" / f"{run.name}.failure").write_text("exit code 2: training: step 3: …")


def test_a_trial_that_diverged_is_the_worst(transfer, tuning):
    diverge(tuning, "dense, lr=0.016")
    assert transfer().code == 0


def test_a_best_rate_whose_neighbor_diverged_is_taken_as_it_is_and_said(transfer, tuning):
    for rate in (0.008, 0.016):
        diverge(tuning, f"dense, lr={rate}")
    done = transfer()
    assert done.code == 0, done.stderr
    assert "dense: best rate 0.003" in done.stdout
    assert "dense: at 6 the best rate tried, as it has no neighbor on one side" in done.stdout


def test_the_table_of_a_tuning_says_what_diverged_and_no_best_of_unfinished_trials(tuning):
    tables = runpy.run_path(str(ROOT / "scripts" / "contest_tables"))["tables"]
    diverge(tuning, "dense, lr=0.016")
    [table] = tables([tuning])
    assert re.search(r"\| dense \|.*\*\*3.9702\*\*.*\| diverged \|", table)
    (run_of(tuning, "LPA, lr=0.008") / "test.json").unlink()
    [table] = tables([tuning])
    assert re.search(r"\| LPA \|.*\| – \|", table)
    assert "**" not in table


def test_a_tuning_whose_rates_the_protocol_extends_is_refused(transfer, tuning):
    path = tuning / "rivals-tuning-pico.json"
    index = json.loads(path.read_text())
    index["variants"] = [v for v in index["variants"] if v["overrides"]["optim.lr"] < 0.005]
    kept = {variant["name"] for variant in index["variants"]}
    index["runs"] = [run for run in index["runs"] if run["variant"] in kept]
    path.write_text(json.dumps(index))
    done = transfer()
    assert done.code == 2
    assert done.stderr.count("\n") == 1
    assert "the best rate of dense is at the end of those tried, 0.002 to" in done.stderr


def test_a_directory_without_a_tuning_is_refused(transfer, tuning):
    (tuning / "rivals-tuning-pico.json").rename(tuning / "rivals-pico.json")
    index = json.loads((tuning / "rivals-pico.json").read_text())
    for variant in index["variants"]:
        variant["tunes"] = None
    (tuning / "rivals-pico.json").write_text(json.dumps(index))
    done = transfer()
    assert done.code == 2
    assert "holds 0 tunings; expected one" in done.stderr
