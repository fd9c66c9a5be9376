import hashlib
import itertools
import json

import numpy as np
import pytest

from lpa.data import Manifest, load_tokenizer, prepare, split_tokens
from lpa.data import preparation as preparation_module
from lpa.errors import LPAWarning, UserError


@pytest.fixture
def lines(tmp_path):
    """A thousand short documents that can be told apart."""
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"document {n} has number {n * n}\n" for n in range(1000)))
    return path


def decode(directory, split):
    tokenizer = load_tokenizer(directory / "tokenizer")
    return tokenizer.decode(split_tokens(directory, split)).split("<|endoftext|>")[:-1]


def test_the_tokens_decode_to_the_documents(tmp_path, lines):
    prepare([lines], tmp_path / "out", vocab_size=300, boundary="line", test_fraction=0.1)
    splits = {s: decode(tmp_path / "out", s) for s in ("train", "validation", "test")}
    documents = lines.read_text().splitlines()
    assert sorted(itertools.chain(*splits.values())) == sorted(documents)
    assert [document for document in documents if document in splits["train"]] == splits["train"]
    assert len(splits["validation"]) == pytest.approx(10, abs=2)
    assert len(splits["test"]) == pytest.approx(100, abs=2)


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
    monkeypatch.setattr(preparation_module, "SHARD_TOKENS", 1000)
    manifest = prepare([lines], tmp_path / "many", vocab_size=300, boundary="line")
    assert len(manifest.splits["train"].shards) > 5
    assert np.array_equal(
        split_tokens(tmp_path / "one", "train"), split_tokens(tmp_path / "many", "train")
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
    prepare([lines], out, vocab_size=300, overwrite=True)
    assert not (out / "precious").exists()


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


def test_text_too_short_to_hold_any_of_it_out_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("short")
    with pytest.raises(UserError, match="validation: no text is left for it"):
        prepare([path], tmp_path / "out", vocab_size=257)
    assert not (tmp_path / "out").exists()
