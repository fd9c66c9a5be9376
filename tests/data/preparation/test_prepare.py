import hashlib
import itertools
import json
import os
import random
import resource

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import wait_until

from lpa.data import Manifest, load_split_tokens, load_tokenizer, prepare
from lpa.data.preparation import encode_jobs, encode_splits
from lpa.data.preparation import shards as shards_module
from lpa.errors import LPAWarning, UserError
from lpa.storage.locks import hold_directory


@pytest.fixture
def lines(tmp_path):
    """A thousand short documents that can be distinguished."""
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"document {n} has number {n * n}\n" for n in range(1000)))
    return path


def decode(directory, split):
    tokenizer = load_tokenizer(directory / "tokenizer")
    return tokenizer.decode(load_split_tokens(directory, split)).split("<|endoftext|>")[:-1]


def test_the_tokens_decode_to_the_documents(tmp_path, lines):
    prepare([lines], tmp_path / "out", vocab_size=300, boundary="line", test_fraction=0.1)
    splits = {s: decode(tmp_path / "out", s) for s in ("train", "validation", "test")}
    documents = lines.read_text().splitlines()
    assert sorted(itertools.chain(*splits.values())) == sorted(documents)
    assert [document for document in documents if document in splits["train"]] == splits["train"]
    assert len(splits["validation"]) == pytest.approx(10, abs=9)
    assert len(splits["test"]) == pytest.approx(100, abs=30)


def test_the_manifest_tells_what_is_there(tmp_path, lines):
    out = tmp_path / "out"
    manifest = prepare([lines], out, vocab_size=300, boundary="line", validation_fraction=0)
    assert Manifest.load(out) == manifest
    assert list(manifest.splits) == ["train"]
    train = manifest.splits["train"]
    text = lines.read_text()
    assert train.documents == 1000
    assert train.words == len(text.split())
    assert train.bytes == len(text) - 1000  # without the line ends
    [shard] = train.shards
    tokens = np.load(out / shard.name)
    assert tokens.dtype == manifest.dtype == "uint16"
    assert len(tokens) == shard.tokens == train.tokens
    assert hashlib.sha256((out / shard.name).read_bytes()).hexdigest() == shard.sha256
    assert (tokens == manifest.eos_token_id).sum() == 1000
    assert manifest.vocab_size == len(load_tokenizer(out / "tokenizer")) == 300


def test_the_end_of_a_single_document_is_held_out(tmp_path, lines):
    prepare([lines], tmp_path / "out", vocab_size=300, validation_fraction=0.2)
    [train], [validation] = (
        decode(tmp_path / "out", "train"),
        decode(tmp_path / "out", "validation"),
    )
    assert train + validation == lines.read_text()
    assert validation.startswith("\ndocument")  # cut at a line end
    assert len(validation) / len(train + validation) == pytest.approx(0.2, abs=0.01)


def test_the_tokenizer_learns_from_training_text_alone(tmp_path):
    train, held_out = tmp_path / "train.txt", tmp_path / "held_out.txt"
    train.write_text("abab " * 500)
    held_out.write_text("xyxy " * 5000)
    prepare([train], tmp_path / "out", vocab_size=259, validation=[held_out])
    merges = set(load_tokenizer(tmp_path / "out" / "tokenizer").get_vocab())
    assert "ab" in merges
    assert "xy" not in merges


def test_the_same_text_gives_the_same_bytes(tmp_path, lines):
    for name in ("a", "b"):
        prepare([lines], tmp_path / name, vocab_size=320, boundary="line")
    files = [
        sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*") if p.is_file())
        for n in ("a", "b")
    ]
    assert files[0] == files[1]
    for file in files[0]:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_prepared_tokenizer_serves_again(tmp_path, lines):
    first = prepare([lines], tmp_path / "a", vocab_size=300, boundary="line")
    for source in (tmp_path / "a" / "tokenizer", tmp_path / "a" / "tokenizer" / "tokenizer.json"):
        again = prepare([lines], tmp_path / "b", tokenizer=source, boundary="line", overwrite=True)
        assert again == first


def test_long_splits_become_several_shards(tmp_path, lines, monkeypatch):
    prepare([lines], tmp_path / "one", vocab_size=300, boundary="line")
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 1000)
    manifest = prepare([lines], tmp_path / "many", vocab_size=300, boundary="line")
    assert len(manifest.splits["train"].shards) > 5
    assert np.array_equal(
        load_split_tokens(tmp_path / "one", "train"), load_split_tokens(tmp_path / "many", "train")
    )


def test_a_large_vocabulary_takes_four_bytes(tmp_path, lines):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0} | {f"t{n}": n for n in range(1, 70000)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="t1"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(
        tmp_path / "tokenizer"
    )
    manifest = prepare([lines], tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    assert manifest.dtype == "uint32"
    assert np.load(tmp_path / "out" / "train-00000.npy").dtype == np.uint32


def test_text_too_small_for_the_vocabulary_warns(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a b c\nd e f\n" * 5)
    with pytest.warns(LPAWarning, match=r"yields only \d+ of 5000"):
        manifest = prepare([path], tmp_path / "out", vocab_size=5000, validation_fraction=0.1)
    assert manifest.vocab_size < 300


def test_what_exists_stays_unless_it_may_be_replaced(tmp_path, lines):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        prepare([lines], out, vocab_size=300)
    assert (out / "precious").read_text() == "mine"
    with pytest.raises(UserError, match="is not a prepared data directory"):
        prepare([lines], out, vocab_size=300, overwrite=True)
    assert (out / "precious").read_text() == "mine"
    (out / "precious").unlink()
    prepare([lines], out, vocab_size=300)
    shard = (out / "train-00000.npy").read_bytes()
    prepare([lines], out, vocab_size=280, overwrite=True)
    assert (out / "train-00000.npy").read_bytes() != shard


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected one of --vocab-size and --tokenizer"),
        ({"vocab_size": 300, "tokenizer": "x"}, "expected one of --vocab-size and --tokenizer"),
        ({"vocab_size": 256}, "vocab_size: got 256; expected at least 257"),
        ({"tokenizer": "/no/such/tokenizer"}, "tokenizer /no/such/tokenizer: cannot be loaded"),
        ({"vocab_size": 300, "validation_fraction": 1.0}, "validation_fraction: got 1.0"),
        ({"vocab_size": 300, "boundary": "page"}, "boundary: got 'page'"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, lines, options, message):
    with pytest.raises(UserError) as error:
        prepare([lines], tmp_path / "out", **options)
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [lines.name]


def test_a_manifest_of_another_version_is_refused(tmp_path, lines):
    out = tmp_path / "out"
    prepare([lines], out, vocab_size=300)
    fields = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(fields | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema_version 99"):
        Manifest.load(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vocab_size": 65537},
            "dtype 'uint16' cannot hold a vocabulary of 65537; expected uint32",
        ),
        ({"dtype": "object"}, "dtype 'object' cannot hold a vocabulary of 300; expected uint16"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(tmp_path, lines, change, message):
    out = tmp_path / "out"
    prepare([lines], out, vocab_size=300)
    fields = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(fields | change))
    with pytest.raises(UserError, match=message):
        Manifest.load(out)


def test_shards_that_changed_places_are_refused(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 100)
    out = tmp_path / "out"
    prepare([lines], out, vocab_size=300)
    fields = json.loads((out / "manifest.json").read_text())
    fields["splits"]["train"]["shards"].reverse()
    (out / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"train has shard .* where train-00000\.npy belongs"):
        Manifest.load(out)


def test_text_too_short_to_hold_any_of_it_out_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("short")
    with pytest.raises(UserError, match="validation: no text is left for it"):
        prepare([path], tmp_path / "out", vocab_size=257)
    assert not (tmp_path / "out").exists()


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


def test_a_killed_preparation_goes_on_to_the_same_bytes(tmp_path, large, lpa):
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


def test_two_processes_do_not_prepare_one_directory(tmp_path, lines):
    with (
        hold_directory(tmp_path / ".out.partial"),
        pytest.raises(
            UserError, match=rf"--out {tmp_path}/out: is in use by process {os.getpid()}"
        ),
    ):
        prepare([lines], tmp_path / "out", vocab_size=300)


def test_a_full_disk_keeps_what_is_finished(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {n} of very many\n" for n in range(20_000)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The tokenizer fits, the tokens do not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(UserError, match=r"out: File too large; what is finished is kept in"):
            prepare([text], tmp_path / "out", vocab_size=300)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / ".out.partial" / "tokenizer").exists()
    assert not (tmp_path / "out").exists()
    prepare([text], tmp_path / "out", vocab_size=300)
    assert not (tmp_path / ".out.partial").exists()


def test_a_document_stays_in_its_split_when_others_are_added(tmp_path, lines):
    more = tmp_path / "more.txt"
    more.write_text("".join(f"another one, {n}\n" for n in range(500)))
    options = {"boundary": "line", "validation_fraction": 0.1, "test_fraction": 0.1}
    prepare([lines], tmp_path / "one", vocab_size=300, **options)
    prepare([more, lines], tmp_path / "two", tokenizer=tmp_path / "one" / "tokenizer", **options)
    for split in ("train", "validation", "test"):
        assert set(decode(tmp_path / "one", split)) <= set(decode(tmp_path / "two", split))


def test_equal_documents_are_left_out_where_asked(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"document {n % 400}\n" for n in range(1200)))
    options = {"vocab_size": 270, "boundary": "line", "validation_fraction": 0.05}
    prepare([path], tmp_path / "all", **options)
    prepare([path], tmp_path / "once", deduplicate=True, **options)
    everything = {
        name: decode(tmp_path / name, "train") + decode(tmp_path / name, "validation")
        for name in ("all", "once")
    }
    assert len(everything["all"]) == 1200
    assert sorted(everything["once"]) == sorted(f"document {n}" for n in range(400))


def test_a_weight_says_how_often_training_documents_are_taken(tmp_path, lines):
    options = {"boundary": "line", "validation_fraction": 0.1}
    prepare([lines], tmp_path / "one", vocab_size=300, **options)
    tokenizer = tmp_path / "one" / "tokenizer"
    once = {split: decode(tmp_path / "one", split) for split in ("train", "validation")}
    for weight, low, high in (("2", 2, 2), ("0.5", 0.4, 0.6), ("1.5", 1.4, 1.6)):
        out = tmp_path / weight
        prepare([f"{lines}#weight={weight}"], out, tokenizer=tokenizer, **options)
        train = decode(out, "train")
        assert set(train) <= set(once["train"])
        assert low <= len(train) / len(once["train"]) <= high
        assert decode(out, "validation") == once["validation"]


@pytest.mark.parametrize(
    ("text", "train", "validation"),
    [("0 ", "0 ", None), (" \n\n\n x", None, " \n\n\n x"), ("ab\ncd", "ab", "\ncd")],
)
def test_white_space_stays_with_the_text_beside_it(tmp_path, tokenizer, text, train, validation):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("one\ntwo", text)))
    prepare([path], tmp_path / "out", tokenizer=tokenizer, validation_fraction=0.5)
    assert decode(tmp_path / "out", "train") == ["one", *filter(None, [train])]
    assert decode(tmp_path / "out", "validation") == ["\ntwo", *filter(None, [validation])]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    documents=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
        | st.sampled_from(["e\u0301 👩‍👩‍👧", "a\x00b", "x\r\ny", " leading", "word " * 3000]),
        max_size=60,
    ),
    fraction=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_no_token_is_lost_or_invented(tmp_path_factory, tokenizer, documents, fraction):
    tmp_path = tmp_path_factory.mktemp("property")
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["first", *documents]))
    kept = ["first", *(text for text in documents if text.strip())]
    try:
        prepare([path], tmp_path / "out", tokenizer=tokenizer, validation_fraction=fraction)
    except UserError:
        return  # too little text for two splits, which its own test covers
    backend = load_tokenizer(tokenizer)
    splits = Manifest.load(tmp_path / "out").splits
    text = {split: "".join(decode(tmp_path / "out", split)) for split in splits}
    assert sorted("".join(text.values())) == sorted("".join(kept))
    if fraction == 0:
        tokens = [t for d in kept for t in [*backend(d)["input_ids"], backend.eos_token_id]]
        assert load_split_tokens(tmp_path / "out", "train").tolist() == tokens
        assert splits["train"].bytes == sum(len(d.encode()) for d in kept)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, prepared):
    return prepared / "tokenizer"


def test_documents_of_no_and_of_a_million_tokens(tmp_path, tokenizer):
    long = "x y " * 500_000
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("", long, " ", "end")))
    prepare([path], tmp_path / "out", tokenizer=tokenizer, validation_fraction=0)
    assert decode(tmp_path / "out", "train") == [long, "end"]
    assert Manifest.load(tmp_path / "out").splits["train"].tokens > 1_000_000


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


@pytest.mark.parametrize("content", ["null", "[]", "{}", "", '{"tokens": 1}', "\0"])
def test_a_damaged_unit_is_encoded_again(tmp_path, tokenizer, content):
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
