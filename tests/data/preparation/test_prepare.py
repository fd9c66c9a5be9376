import hashlib
import itertools
import json
import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpa.data import Manifest, load_split_tokens, load_tokenizer, prepare
from lpa.data.preparation import shards as shards_module
from lpa.errors import LPAWarning, UserError
from lpa.storage.locks import lock_directory


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
    assert validation.startswith("\ndocument")  # split at a line end
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
        ({}, "--vocab-size, --tokenizer: got neither; expected exactly one"),
        ({"vocab_size": 300, "tokenizer": "x"}, "--vocab-size, --tokenizer: got both"),
        ({"vocab_size": 256}, "--vocab-size: got 256; expected at least 257"),
        ({"tokenizer": "/no/such/tokenizer"}, "tokenizer /no/such/tokenizer: cannot be loaded"),
        ({"vocab_size": 300, "validation_fraction": 1.0}, "--validation-fraction: got 1.0"),
        ({"vocab_size": 300, "boundary": "page"}, "boundary: got 'page'"),
        (
            {"vocab_size": 300, "validation": ["held-out.txt"], "validation_fraction": 0.01},
            "--validation-fraction: got 0.01 beside --validation",
        ),
        (
            {"vocab_size": 300, "test": ["held-out.txt"], "test_fraction": 0.2},
            "--test-fraction: got 0.2 beside --test",
        ),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, lines, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held-out.txt").write_text("held out\n")
    with pytest.raises(UserError) as error:
        prepare([lines], tmp_path / "out", **options)
    assert message in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {lines.name, "held-out.txt"}


@pytest.mark.parametrize("choice", ["vocab_size", "tokenizer"])
@pytest.mark.parametrize(
    ("documents", "weight", "fraction", "split"),
    [
        (["short"], 1, 0.01, "validation"),
        (["long " * 1000] * 2, 1, 0.01, "validation"),  # which leaves nothing that occurs once
        (["short"], 1, 0.99, "train"),
        (["short"], 0.01, 0.0, "train"),
        (["b"] * 30, 1, 0.4, "train"),  # as a whole, by its hash
    ],
)
def test_a_split_without_text_is_refused_before_the_work(
    tmp_path, tokenizer, choice, documents, weight, fraction, split
):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    stages = []
    with pytest.raises(UserError, match=rf"^{split}: no text is left for it; (?!.*train-fraction)"):
        prepare(
            [f"{path}#weight={weight}"],
            tmp_path / "out",
            validation_fraction=fraction,
            on_progress=lambda what, done, total: stages.append(what),
            **{choice: {"vocab_size": 257, "tokenizer": tokenizer}[choice]},
        )
    assert stages == []
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_do_not_prepare_one_directory(tmp_path, lines):
    with (
        lock_directory(tmp_path / ".out.partial"),
        pytest.raises(
            UserError, match=rf"--out {tmp_path}/out: is in use by process {os.getpid()}"
        ),
    ):
        prepare([lines], tmp_path / "out", vocab_size=300)


@contextmanager
def full_disk(size):
    """A disk on which no file can have more bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(UserError, match=r"out: File too large; what is finished is kept in"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_what_is_finished(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {n} of very many\n" for n in range(20_000)))
    with full_disk(2**16):  # the tokenizer fits, the tokens do not
        prepare([text], tmp_path / "out", vocab_size=300)
    assert (tmp_path / ".out.partial" / "tokenizer").exists()
    assert not (tmp_path / "out").exists()
    prepare([text], tmp_path / "out", vocab_size=300)
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("kind", ["trained", "given", "given as one file"])
def test_a_disk_too_full_for_the_tokenizer_is_one_line(tmp_path, lines, tokenizer, kind):
    choices = {
        "trained": {"vocab_size": 300},
        "given": {"tokenizer": tokenizer},
        "given as one file": {"tokenizer": tokenizer / "tokenizer.json"},
    }
    with full_disk(2**11):
        prepare([lines], tmp_path / "out", **choices[kind])
    prepare([lines], tmp_path / "out", **choices[kind])


def test_a_disk_that_fills_up_at_the_end_is_one_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some words\n" * 20)

    def stop(what, done, total):
        if what == "writing shards":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([path], tmp_path / "out", vocab_size=300, on_progress=stop)
    with full_disk(2**11):  # the tokens fit, the tokenizer does not
        prepare([path], tmp_path / "out", vocab_size=300)
    prepare([path], tmp_path / "out", vocab_size=300)


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
    [("0 ", "0 ", None), (" \n\n\n x", None, " \n\n\n x"), ("ab\ncd", "ab\n", "cd")],
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


def test_documents_of_no_and_of_a_million_tokens(tmp_path, tokenizer):
    long = "x y " * 500_000
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("", long, " ", "end")))
    prepare([path], tmp_path / "out", tokenizer=tokenizer, validation_fraction=0)
    assert decode(tmp_path / "out", "train") == [long, "end"]
    assert Manifest.load(tmp_path / "out").splits["train"].tokens > 1_000_000


@pytest.mark.parametrize(
    ("weight", "low", "high"), [("2", 2, 2), ("0.5", 0.3, 0.7), ("1.5", 1.3, 1.7)]
)
def test_a_weight_holds_where_documents_are_cut_into_splits(tmp_path, weight, low, high):
    text = tmp_path / "lines.txt"
    text.write_text("".join(f"Document {n} of a few, all of them short.\n" for n in range(300)))
    options = {"vocab_size": 300, "boundary": "line", "validation_fraction": 0.02}
    once, weighted = (
        prepare([source], tmp_path / name, **options)
        for name, source in (("once", text), ("weighted", f"{text}#weight={weight}"))
    )
    assert once.split("train").documents == 300
    ratio = weighted.split("train").tokens / once.split("train").tokens
    assert low * 0.95 <= ratio <= high * 1.05
    assert weighted.split("validation").documents == once.split("validation").documents


def test_part_of_the_only_document_is_taken_by_its_weight(tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("It was the best of times, it was the worst of times.\n" * 400)
    options = {"vocab_size": 300, "boundary": "file", "validation_fraction": 0.1}
    once, half = (
        prepare([source], tmp_path / name, **options)
        for name, source in (("once", text), ("half", f"{text}#weight=0.5"))
    )
    ratio = half.split("train").tokens / once.split("train").tokens
    assert ratio == pytest.approx(0.5, abs=0.02)
    assert half.split("validation").tokens == once.split("validation").tokens


@pytest.mark.parametrize("weight", ["2", "0.5", "2.5"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_weight_changes_no_held_out_file(tmp_path, lines, tokenizer, split, weight):
    text = tmp_path / "train.txt"
    text.write_text("other text\n")
    for name, source in (("once", lines), ("weighted", f"{lines}#weight={weight}")):
        prepare(
            [text],
            tmp_path / name,
            tokenizer=tokenizer,
            boundary="line",
            validation_fraction=0,
            **{split: [source]},
        )
    once, weighted = (decode(tmp_path / name, split) for name in ("once", "weighted"))
    assert once == weighted == lines.read_text().splitlines()
