"""A shard of tokens that is damaged in any way is refused, or encoded again."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lpa.data.dataset import TokenSplit
from lpa.data.manifest import Manifest, Shard, Split
from lpa.data.preparation.encode_jobs import JobStats, load_job_stats
from lpa.errors import UserError

SPLIT = Split([Shard("train-00000.npy", 40, "ab")], tokens=40, documents=2, bytes=160, words=30)
MANIFEST = Manifest("cd", 300, "uint16", 0, {"train": SPLIT}, {"sources": {}})

# A shard of 40 tokens of uint16 after a damage.
SHARDS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "truncated header": lambda content: content[:40],
    "truncated": lambda content: content[:-2],
    "no NumPy": lambda content: b"x" * len(content),
    "a zip file": lambda content: b"PK\x03\x04" + content[4:],
    "another version": lambda content: content[:6] + b"\x09\x09" + content[8:],
    "no literal": lambda content: content.replace(b"{'descr'", b"{{{{{{{{{"),
    "no such dtype": lambda content: content.replace(b"'<u2'", b"'<q9'"),
    "objects": lambda content: content.replace(b"'<u2'", b"'|O' "),
    "negative shape": lambda content: content.replace(b"(40,)", b"(-4,)"),
    "endless shape": lambda content: content.replace(
        b"(40,), }" + b" " * 20, b"(" + b"9" * 22 + b",), }"
    ),
    "no shape": lambda content: content.replace(b"'shape'", b"'shaqe'"),
    "float": lambda content: content.replace(b"'<u2'", b"'<f2'"),
    "fewer": lambda content: content.replace(b"(40,)", b"(39,)"),
    "two dimensions": lambda content: content.replace(b"(40,), } ", b"(8, 5), }"),
}


def shard_bytes(folder: Path) -> bytes:
    np.save(folder / "train-00000.npy", np.arange(40, dtype=np.uint16))
    return (folder / "train-00000.npy").read_bytes()


@pytest.mark.parametrize("damage", SHARDS)
def test_a_damaged_shard_is_one_line(tmp_path, damage):
    MANIFEST.save(tmp_path)
    content = shard_bytes(tmp_path)
    assert len(TokenSplit(tmp_path, "train")) == 40
    changed = SHARDS[damage](content)
    assert changed != content
    (tmp_path / "train-00000.npy").write_bytes(changed)
    with pytest.raises(UserError) as error:
        TokenSplit(tmp_path, "train")
    assert f"{tmp_path}/train-00000.npy: shard" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", SHARDS)
def test_a_job_with_damaged_tokens_is_not_finished(tmp_path, damage):
    content = shard_bytes(tmp_path)
    job = tmp_path / "train-0000003"
    job.with_suffix(".json").write_text(json.dumps(asdict(JobStats("ab", tokens=40))))
    job.with_suffix(".npy").write_bytes(content)
    assert load_job_stats(tmp_path, "train", 3) == JobStats("ab", tokens=40)
    job.with_suffix(".npy").write_bytes(SHARDS[damage](content))
    assert load_job_stats(tmp_path, "train", 3) is None
