"""A sample of what scripts/fuzz tries, and the harness itself."""

import time

import pytest
from commands import Finished
from fuzz.harness import Case, Failure, fuzz, summary

from lpa.cli import COMMANDS

pytestmark = pytest.mark.xdist_group("fuzz")

SECONDS = 10


@pytest.mark.slow
def test_nothing_given_breaks_the_rule(fuzzer):
    failures = []
    for case, finished, kind in fuzz(fuzzer, fuzzer.cases(seed=0), SECONDS):
        if kind is not None:
            failures.append(Failure(case, kind, finished))
    assert not failures, summary({}, failures)


def test_every_option_and_every_file_has_cases(fuzzer):
    cases = fuzzer.cases(seed=0)
    names = [case.name for case in cases]
    for command in COMMANDS:
        assert any(name.startswith(f"option: {command} ") for name in names)
    files = {case.file for case in cases}
    for file in ("data/manifest.json", "run/result.json", "run/metrics.jsonl", "run/config.yaml"):
        assert file in files
    assert len(set(names)) == len(names)
    assert names != [case.name for case in fuzzer.cases(seed=1)]


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("raise ValueError", "traceback"),
        ("raise SystemExit(3)", "exit code 3"),
        ("raise SystemExit(2)", "no message"),
        ("import os; os.kill(os.getpid(), 11)", "crash"),
        ("import time; time.sleep(9)", "hang"),
        (
            "import sys; open('new', 'w'); print('lpa: error: no', file=sys.stderr); sys.exit(2)",
            "written on 2",
        ),
        ("x = bytearray(20 * 2**30)", "traceback"),
        ("", None),
    ],
)
def test_each_way_to_break_the_rule_is_seen(fuzzer, tmp_path, monkeypatch, script, kind):
    path = tmp_path / "script.py"
    path.write_text(script)
    lpa = fuzzer.lpa
    monkeypatch.setattr(
        fuzzer, "lpa", lambda *arguments, **options: lpa(*arguments, script=path, **options)
    )
    began = time.monotonic()
    case = Case("option: x y", ["x"])
    finished, found = fuzzer.attempt(case, deadline=2)
    assert found == kind
    assert time.monotonic() - began < 9
    if kind is not None:
        text = summary({"option": 1}, [Failure(case, kind, finished)])
        assert f"1 failures: 1 {kind}" in text
        assert "scripts/fuzz --only 'option: x y'" in text


def test_failures_of_one_cause_stand_together():
    error = 'File "/a/src/lpa/cli/x.py", line 3, in f\nKeyError: 1'
    failures = [Failure(Case(n, [n]), "traceback", Finished(1, "", error)) for n in "ab"]
    assert failures[0].signature == "traceback: cli/x.py:3: KeyError: 1"
    assert "2 x traceback: cli/x.py:3: KeyError: 1" in summary({"option": 2}, failures)
