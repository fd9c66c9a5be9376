import json
from dataclasses import asdict

import pytest

from lpa.data import Manifest, prepare
from lpa.data.manifest import Shard, Split
from lpa.data.preparation import shards as shards_module
from lpa.errors import UserError

SPLIT = Split([Shard("train-00000.npy", 40, "ab")], tokens=40, documents=2, bytes=160, words=30)
MANIFEST = Manifest("cd", 300, "uint16", 0, {"train": SPLIT}, {"sources": {}})


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


def test_a_manifest_that_contradicts_itself_is_refused(tmp_path):
    fields = asdict(MANIFEST)
    for change, message in (
        ({"vocab_size": 2**17}, "cannot hold a vocabulary"),
        ({"eos_token_id": 300}, "eos_token_id: got 300; expected one below vocab_size"),
        ({"dtype": "float32"}, "dtype 'float32' cannot hold"),
        ({"splits": {"valid": fields["splits"]["train"]}}, "splits: got 'valid'"),
        (
            {"splits": {"train": {**fields["splits"]["train"], "tokens": 41}}},
            "splits.train.tokens: got 41; expected 40",
        ),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({**fields, **change}))
        with pytest.raises(UserError, match=message):
            Manifest.load(tmp_path)


def test_training_text_scores_no_model_unless_it_is_named(tmp_path, lpa, run):
    """In any command that takes held-out text by default."""
    text = tmp_path / "text.txt"
    text.write_text("Words and more words, said the man who saw that they did.\n" * 60)
    data = tmp_path / "data"
    tokenizer = run / "final"
    prepare([text], data, tokenizer=tokenizer, validation_fraction=0)
    for command in (
        ("eval", "perplexity", run),
        ("eval", "compare", run, run),
        ("eval", "minimal-pairs", run),
    ):
        refused = lpa(*command, "--data", data, "--device", "cpu")
        assert (refused.code, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert "the data has only 'train'" in refused.stderr
    named = lpa("eval", "perplexity", run, "--data", data, "--device", "cpu", "--split", "train")
    assert named.code == 0, named.stderr
    assert lpa("data", "show", data).code == 0
