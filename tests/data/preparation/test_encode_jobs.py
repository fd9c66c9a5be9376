"""Preparation in jobs: by several processes, and on from where it was stopped."""

import hashlib
import json
import multiprocessing
import random
import shutil
import subprocess
import sys

import pytest
from helpers.runs import wait_until

from lpa.data import prepare
from lpa.data.preparation import encode_jobs, encode_splits
from lpa.errors import LPAWarning, UserError


def digests(directory):
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Enough text for some fifteen jobs of `small_jobs`."""
    path = tmp_path_factory.mktemp("large") / "large.txt"
    chance = random.Random(0)
    words = [f"word{n}" for n in range(3000)]
    with open(path, "w") as file:
        for _ in range(12_000):
            file.write(" ".join(chance.choices(words, k=20)) + "\n")
    return path


# As `lpa`, with jobs so small that a text of two megabytes makes many, and processes that share them.
SMALL_JOBS = """
import sys
from lpa.cli import main
from lpa.data.preparation import encode_jobs, encode_splits
if __name__ == "__main__":
    encode_jobs.JOB_CHARACTERS = 2**17
    encode_splits.SINGLE_PROCESS_BYTES = 2**17
    main(sys.argv[1:])
"""


@pytest.fixture
def small_jobs(monkeypatch):
    """Likewise, for preparations by this process."""
    monkeypatch.setattr(encode_jobs, "JOB_CHARACTERS", 2**17)
    monkeypatch.setattr(encode_splits, "SINGLE_PROCESS_BYTES", 2**17)


@pytest.mark.usefixtures("small_jobs")
def test_the_number_of_processes_changes_no_byte(tmp_path, large):
    for workers in (1, 3):
        prepare([large], tmp_path / str(workers), vocab_size=500, boundary="line", workers=workers)
    assert digests(tmp_path / "1") == digests(tmp_path / "3")


def test_a_killed_preparation_resumes_to_the_same_bytes(tmp_path, large, lpa):
    script = tmp_path / "small_jobs.py"
    script.write_text(SMALL_JOBS)
    command = ("prepare", large, "--vocab-size", 500, "--boundary", "line", "--out")
    finished = lpa(*command, tmp_path / "whole", script=script)
    assert finished.code == 0, finished.stderr
    out, partial = tmp_path / "out", tmp_path / ".out.partial"

    def jobs() -> int:
        return len(list(partial.glob("jobs/*.json")))

    before = 0
    moments = (
        lambda: (partial / "plan.json").exists(),
        lambda: (partial / "tokenizer").exists(),
        lambda: jobs() > 0,
        lambda: jobs() > before,
        lambda: jobs() > before,
    )
    for moment in moments:
        before = jobs()
        process = lpa.start(script, *command, out)
        wait_until(moment, process)
        process.kill()
        process.wait()
        assert not out.exists()
    assert jobs() >= 3
    finished = lpa(*command, out, script=script)
    assert finished.code == 0, finished.stderr
    assert digests(out) == digests(tmp_path / "whole")
    assert not partial.exists()


@pytest.mark.usefixtures("small_jobs")
def test_finished_jobs_are_not_encoded_again(tmp_path, large, monkeypatch):
    from lpa.data.preparation.encode_jobs import JobEncoder

    encode, calls = JobEncoder.encode, []

    def encode_two(self, *arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments)
        return encode(self, *arguments)

    options = {"vocab_size": 300, "boundary": "line", "workers": 1}
    with monkeypatch.context() as patch:
        patch.setattr(JobEncoder, "encode", encode_two)
        with pytest.raises(KeyboardInterrupt):
            prepare([large], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    numbers = []

    def count(self, number, *arguments):
        numbers.append(number)
        return encode(self, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(JobEncoder, "encode", count)
        prepare([large], tmp_path / "out", **options)
    assert not {(call[0], call[1]) for call in calls} & {(n, "train") for n in numbers[1:]}
    prepare([large], tmp_path / "whole", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


BAD_ROWS = {
    "a row that is no text": ('{"text": 1}', "line 401: column 'text' is a number"),
    "a row that is no JSON": ('{"text": "a', "line 401: Invalid control character"),
    "a byte that is not UTF-8": ('{"text": "caf\udce9"}', "line 401: byte 0xe9 is not UTF-8"),
    "a row without the column": ('{"body": "a"}', "line 401: no text in column 'text'"),
}


@pytest.mark.parametrize(
    ("kind", "workers"), [*((kind, 1) for kind in BAD_ROWS), ("a row that is no text", 2)]
)
def test_a_bad_row_late_in_the_text_keeps_what_is_finished(
    tmp_path, tokenizer, monkeypatch, kind, workers
):
    from lpa.data.preparation import encode_jobs as jobs_module

    monkeypatch.setattr(jobs_module, "JOB_CHARACTERS", 2000)
    monkeypatch.setattr(encode_splits, "SINGLE_PROCESS_BYTES", 0)
    row, message = BAD_ROWS[kind]
    rows = [json.dumps({"text": f"document {n} has number {n * n}"}) for n in range(500)]
    path = tmp_path / "a.jsonl"

    def write(*rows):
        path.write_text("\n".join(rows) + "\n", encoding="utf-8", errors="surrogateescape")

    options = {"tokenizer": tokenizer, "validation_fraction": 0.1, "workers": workers}
    jobs = tmp_path / ".out.partial" / "jobs"

    def written():
        return {file.name: file.stat().st_mtime_ns for file in jobs.glob("*.npy")}

    write(*rows[:400], row, *rows[400:])
    with pytest.raises(UserError) as error:
        prepare([path], tmp_path / "out", **options)
    assert message in str(error.value)
    first = written()
    assert len(first) > 5
    assert f"the {len(first)} jobs that are finished are kept in {jobs.parent}" in str(error.value)
    assert not (tmp_path / "out").exists()

    write(*rows[:490], "oops")
    with pytest.raises(UserError, match="line 491"):
        prepare([path], tmp_path / "out", **options)
    assert len(written()) > len(first)
    assert first.items() <= written().items()  # not encoded again

    write(*rows[:300], *rows[310:])  # which changes all jobs from there on
    prepare([path], tmp_path / "out", **options)
    assert not jobs.parent.exists()
    prepare([path], tmp_path / "fresh", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


@pytest.mark.usefixtures("small_jobs")
def test_a_refusal_at_the_end_keeps_what_is_finished(tmp_path, large):
    out, jobs = tmp_path / "out", tmp_path / ".out.partial" / "jobs"

    def make_output(what, done, total):
        if what == "encoding":
            out.mkdir(exist_ok=True)
            (out / "precious").write_text("mine")

    options = {"vocab_size": 300, "boundary": "line", "workers": 1}
    with pytest.raises(UserError, match=r"out: already exists; .*; the \d+ jobs that are finished"):
        prepare([large], out, on_progress=make_output, **options)
    assert len(list(jobs.glob("train-*.npy"))) > 5
    assert [path.name for path in out.iterdir()] == ["precious"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_files_without_text_are_refused_before_the_work(tmp_path, large, split):
    blank = tmp_path / "blank.txt"
    blank.write_text(" \n\n")
    stages = []
    with pytest.raises(UserError, match=rf"^--{split} {blank}: no text$"):
        prepare(
            [large],
            tmp_path / "out",
            vocab_size=300,
            on_progress=lambda what, done, total: stages.append(what),
            **{split: [blank]},
        )
    assert stages == []
    assert list(tmp_path.iterdir()) == [blank]


@pytest.mark.parametrize("changed", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_changed_is_noticed(tmp_path, large, prepared, monkeypatch, changed):
    def stop(self, *arguments):
        raise KeyboardInterrupt

    given = tmp_path / "tokenizer"
    shutil.copytree(prepared / "tokenizer", given)
    options = {"tokenizer": given, "boundary": "line", "workers": 1}
    with monkeypatch.context() as patch:
        patch.setattr(encode_jobs.JobEncoder, "encode", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare([large], tmp_path / "out", **options)
    fields = json.loads((given / changed).read_text())
    if changed == "tokenizer.json":
        fields["model"]["merges"].pop()
    else:
        fields["model_max_length"] = 77
    (given / changed).write_text(json.dumps(fields))
    with pytest.warns(LPAWarning, match=rf"tokenizer {given}: {changed} has changed"):
        prepare([large], tmp_path / "out", **options)
    prepare([large], tmp_path / "fresh", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


@pytest.mark.usefixtures("small_jobs")
def test_a_worker_that_is_killed_is_one_line_and_keeps_what_is_finished(tmp_path, large):
    out, jobs = tmp_path / "out", tmp_path / ".out.partial" / "jobs"

    def kill_a_worker(what, done, total):
        if list(jobs.glob("*.json")):
            for worker in multiprocessing.active_children()[:1]:
                worker.kill()

    options = {"vocab_size": 300, "boundary": "line", "workers": 2}
    with pytest.raises(UserError, match=r"^--workers 2: a process ended .*jobs that are finished"):
        prepare([large], out, on_progress=kill_a_worker, **options)
    assert list(jobs.glob("*.json"))
    prepare([large], out, **options)


# Without the guard that processes need which run their script again.
PLAIN_SCRIPT = """
import sys
import lpa
from lpa.data.preparation import encode_splits
encode_splits.SINGLE_PROCESS_BYTES = 0
lpa.prepare([sys.argv[1]], sys.argv[2], vocab_size=300, boundary="line", workers=2)
print("prepared")
"""


def test_a_script_may_prepare_at_its_top_level(tmp_path, large):
    script = tmp_path / "plain.py"
    script.write_text(PLAIN_SCRIPT)
    command = [sys.executable, script, large, tmp_path / "out"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (finished.stdout, finished.stderr) == ("prepared\n", "")


@pytest.mark.parametrize("content", ["null", "[]", "{}", "", '{"tokens": 1}', "\0"])
def test_a_damaged_job_is_encoded_again(tmp_path, tokenizer, content):
    path = tmp_path / "a.txt"
    path.write_text("some words " * 100)
    options = {"tokenizer": tokenizer, "validation_fraction": 0}
    prepare([path], tmp_path / "fresh", **options)
    jobs = tmp_path / ".out.partial" / "jobs"
    jobs.mkdir(parents=True)
    (jobs / "train-0000000.json").write_text(content)
    (jobs / "train-0000001.json").write_text(content)
    prepare([path], tmp_path / "out", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")
