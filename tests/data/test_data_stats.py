import hashlib
import json
import shutil

import numpy as np
import pytest

from lpa.data import load_split_tokens, prepare
from lpa.data.dataset import verify_shards
from lpa.data.stats import sample_documents, split_stats, verify_data
from lpa.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Documents whose figures are known: 100 of them, ten of which occur twice."""
    folder = tmp_path_factory.mktemp("inspection")
    path = folder / "a.txt"
    texts = [f"document {n} " + "x" * n for n in range(90)]
    path.write_text("\n".join(texts + texts[:10]) + "\n")
    prepare([path], folder / "data", vocab_size=257, boundary="line", validation_fraction=0)
    return folder / "data"


def test_statistics_are_those_of_the_text(data):
    figures = split_stats(data, "train")
    # A vocabulary of bytes alone: a token is a byte, and one ends each document.
    texts = [f"document {n} " + "x" * n for n in range(90)]
    lengths = [len(text) + 1 for text in texts + texts[:10]]
    assert figures.documents == 100
    assert figures.duplicates == 10
    assert figures.tokens == sum(lengths)
    assert figures.bytes == sum(lengths) - 100
    assert figures.bytes_per_token == figures.bytes / figures.tokens
    assert figures.longest == max(lengths)
    assert figures.lengths == {
        smallest: sum(smallest <= length < 2 * smallest for length in lengths)
        for smallest in (8, 16, 32, 64)
    }
    assert figures.vocab_used == len(set("".join(texts))) + 1


def test_documents_are_shown_to_their_end_or_so_far(data):
    shown = sample_documents(data, "train", num_samples=200, max_tokens=20)
    assert len(shown) == 100
    assert shown[3] == "document 3 xxx<|endoftext|>"
    assert shown[89] == "document 89 xxxxxxxx …"
    few = sample_documents(data, "train", num_samples=3, seed=1)
    assert len(few) == 3
    assert few == sample_documents(data, "train", num_samples=3, seed=1)


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"num_samples": 1, "max_tokens": 0}])
def test_nothing_to_show_is_refused(data, options):
    with pytest.raises(UserError, match="got 0; expected at least 1"):
        sample_documents(data, "train", **options)


def test_an_intact_directory_verifies_and_a_changed_one_does_not(data, tmp_path):
    assert verify_data(data) == []
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    shard = copy / "train-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    [problem] = verify_data(copy)
    assert "train-00000.npy: SHA-256 is not that of the manifest" in problem
    with pytest.raises(UserError, match="the shard was replaced, reordered or damaged"):
        load_split_tokens(copy, "train")
    shard.unlink()
    (copy / "tokenizer" / "tokenizer.json").unlink()
    problems = verify_data(copy)
    assert "train-00000.npy: no such shard" in problems[1]
    assert problems[0].startswith(f"{copy}/tokenizer: has no tokenizer.json")


def test_a_token_beyond_the_vocabulary_is_named(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    tokens = np.load(copy / "train-00000.npy")
    tokens[5] = 300
    np.save(copy / "train-00000.npy", tokens)
    with pytest.raises(UserError, match="train has token 300; the vocabulary ends at 256"):
        split_stats(copy, "train")


def test_a_token_beyond_the_vocabulary_stops_training_before_it_begins(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    shard = copy / "train-00000.npy"
    tokens = np.load(shard)
    tokens[5] = 300
    np.save(shard, tokens)
    fields = json.loads((copy / "manifest.json").read_text())
    fields["splits"]["train"]["shards"][0]["sha256"] = hashlib.sha256(
        shard.read_bytes()
    ).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(
        UserError, match=r"train-00000\.npy: has token 300; the vocabulary ends at 256"
    ):
        verify_shards(copy, "train")


def test_the_command_line(lpa, data, tmp_path):
    statistics = lpa("data", "stats", data, "--json").json
    assert statistics["splits"]["train"]["documents"] == 100
    assert "duplicates" in lpa("data", "stats", data).stdout
    shown = lpa("data", "show", data, "--num-samples", 2).stdout
    assert shown.count("<|endoftext|>") == 2
    assert "---" in shown
    assert lpa("data", "verify", data).stdout.strip().endswith("intact")
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    (copy / "train-00000.npy").unlink()
    broken = lpa("data", "verify", copy)
    assert broken.code == 2
    assert "train-00000.npy: no such shard" in broken.stderr
    assert json.loads(lpa("data", "verify", copy, "--json").stdout)["problems"]
