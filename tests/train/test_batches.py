import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from helpers.small_runs import UnequalDocuments

from lpa.data.dataset import TokenDataset, verify_shard
from lpa.data.manifest import MANIFEST_FILE, Manifest
from lpa.data.verification import VERIFIED_FILE
from lpa.errors import UserError
from lpa.storage.files import file_sha256
from lpa.train.batches import BatchReader, TrainingData
from lpa.train.config import DataConfig
from lpa.train.distributed.process_group import World


def reader_of(dataset, dp_rank=0, dp_size=1, *, start=0, steps=3, batch_size=8, micro_batch_size=2):
    return BatchReader(
        dataset,
        torch.device("cpu"),
        start=start,
        steps=steps,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        dp_rank=dp_rank,
        dp_size=dp_size,
        num_workers=0,
    )


def read(dataset, dp_rank, dp_size, *, steps=3, **settings):
    reader = reader_of(dataset, dp_rank, dp_size, steps=steps, **settings)
    return [reader.next_step() for _ in range(steps)]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_step_has_the_same_samples_however_many_processes_read(prepared, processes):
    dataset = TokenDataset(prepared, "train", seq_len=32, seed=0)
    by_process = [read(dataset, rank, processes, start=16) for rank in range(processes)]
    for step in range(3):
        numbers = [n for own in by_process for batch in own[step] for n in batch.sample_indices]
        first = 16 + 8 * step
        assert sorted(numbers) == list(range(first, first + 8))


def test_a_micro_batch_knows_its_samples(prepared):
    dataset = TokenDataset(prepared, "train", seq_len=32, seed=0)
    for batch in read(dataset, 1, 2)[1]:
        for row, number in enumerate(batch.sample_indices):
            assert torch.equal(batch.inputs["input_ids"][row], dataset[number]["input_ids"])
        assert batch.num_targets == 2 * 32


def test_what_is_read_ahead_is_what_would_be_read_next(prepared):
    dataset = UnequalDocuments(prepared, "train", seq_len=32, seed=0)
    reader, other = (reader_of(dataset, steps=2) for _ in range(2))
    for last in (False, True):
        batches = reader.next_step()
        targets = reader.prefetch_step()
        assert targets == reader.prefetch_step()
        expected = other.next_step()
        assert [b.sample_indices for b in batches] == [b.sample_indices for b in expected]
        assert (targets == 0) == last
    with pytest.raises(StopIteration):
        reader.next_step()


def test_the_identity_is_of_tokens_and_tokenizer(prepared):
    data = TrainingData(DataConfig(prepared, seq_len=32), 0, World.single_process("cpu"))
    assert set(data.fingerprints) == {"data.tokens", "data.tokenizer"}
    assert data.fingerprints["data.tokenizer"] == data.manifest.tokenizer_sha256


def test_shards_are_verified_once_and_again_when_they_change(prepared, tmp_path, monkeypatch):
    data = copy_data(prepared, tmp_path / "data")
    config = DataConfig(data, seq_len=32, verify=True)
    read = []

    def count(path, manifest, shard):
        read.append(shard.name)
        verify_shard(path, manifest, shard)

    monkeypatch.setattr("lpa.train.batches.verify_shard", count)

    def verified() -> set[str]:
        read.clear()
        TrainingData(config, 0, World.single_process("cpu"))
        return set(read)

    manifest = TrainingData(config, 0, World.single_process("cpu")).manifest
    assert verified() == set(), "remembered"
    (data / VERIFIED_FILE).write_text("damaged")
    everything = {
        shard.name for split in ("train", "validation") for shard in manifest.split(split).shards
    }
    assert verified() == everything
    shard = data / manifest.split("train").shards[0].name
    os.utime(shard, (1, 1))
    assert verified() == {shard.name}
    shutil.copytree(data, tmp_path / "copy")  # with the times, and with what is remembered
    config.path = tmp_path / "copy"
    assert verified() == everything
    config.path = data
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="SHA-256 is not that of the manifest"):
        verified()


def test_each_shard_is_verified_by_one_process(run_ranks, prepared, tmp_path):
    data = copy_data(prepared, tmp_path / "data")
    first, again = run_ranks(2, "verification.py", data, tmp_path / "names.json")
    shards = shard_names(data)
    assert first == [shards[0::2], shards[1::2]]
    assert all(first), "each process has a share"
    assert again == [[], []], "remembered for all"


def test_each_copy_of_the_data_is_verified(run_ranks, prepared, tmp_path):
    """Two machines with their own copy, two processes each."""
    copies = [copy_data(prepared, tmp_path / name) for name in ("first", "second")]
    first, again = run_ranks(4, "verification.py", *copies, tmp_path / "names.json")
    shares = [names[half::2] for names in [shard_names(prepared)] for half in range(2)]
    assert first == 2 * shares
    assert again == 4 * [[]], "remembered in both"
    (copies[1] / VERIFIED_FILE).unlink()
    first, _ = run_ranks(4, "verification.py", *copies, tmp_path / "names.json")
    assert first == [[], [], *shares]


def test_machines_with_different_data_are_refused(run_ranks, prepared, tmp_path):
    changes = {
        "nothing": ([], {"source": {"files": ["elsewhere.txt"]}}),
        "data.tokens": (["train-00000.npy"], {}),
        "validation": (["validation-00000.npy"], {}),
        "bos_token_id": ([], {"bos_token_id": 3}),
        "vocab_size": ([], {"vocab_size": 301}),
    }
    for what, (shards, fields) in changes.items():
        copy = copy_data(prepared, tmp_path / "copies" / what)
        for name in shards:
            change_shard(copy, name)
        change_manifest(copy, lambda manifest, fields=fields: manifest.update(fields))
    copy = copy_data(prepared, tmp_path / "copies" / "validation, lacking")
    change_manifest(copy, lambda manifest: manifest["splits"].pop("validation"))
    found = run_ranks(
        2, "data_copies.py", prepared, tmp_path / "copies", tmp_path / "outcomes.json"
    )
    assert found.pop("nothing") == ["accepted", "accepted"]
    for name, outcomes in found.items():
        what = name.removesuffix(", lacking")
        assert outcomes == [
            "reported by another",
            f"data.path: got {tmp_path / 'copies' / name}, which on rank 1 differs from that on rank 0 in "
            f"{what}; expected the same data on all machines",
        ]
    assert len(found) == len(changes)


def copy_data(data, copy):
    """A copy of a data directory that no process has verified."""
    return shutil.copytree(data, copy, ignore=shutil.ignore_patterns(VERIFIED_FILE))


def shard_names(data):
    splits = Manifest.load(data).splits
    return [shard.name for split in ("train", "validation") for shard in splits[split].shards]


def change_manifest(data, change):
    file = data / MANIFEST_FILE
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def change_shard(data, name):
    """Another first token, of which the manifest knows."""
    tokens = np.load(data / name)
    tokens[0] += 1 if tokens[0] < 299 else -1
    np.save(data / name, tokens)

    def change(manifest):
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                if shard["name"] == name:
                    shard["sha256"] = file_sha256(data / name)

    change_manifest(data, change)


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_workers_read_the_same_samples_however_they_start(prepared, start_method):
    dataset = TokenDataset(prepared, "train", seq_len=32, seed=0)
    assert len(pickle.dumps(dataset)) < 2000, "no token is sent to a worker"
    loader = torch.utils.data.DataLoader(
        dataset, sampler=[3, 1, 2], num_workers=1, multiprocessing_context=start_method
    )
    for index, sample in zip([3, 1, 2], loader, strict=True):
        assert torch.equal(sample["input_ids"][0], dataset[index]["input_ids"])
