import os
import pickle
import shutil

import pytest
import torch
from helpers.small_runs import UnequalDocuments

from lpa.data.dataset import TokenDataset, verify_shard
from lpa.data.verification import VERIFIED_FILE
from lpa.errors import UserError
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
    data = tmp_path / "data"
    shutil.copytree(prepared, data, ignore=shutil.ignore_patterns(VERIFIED_FILE))
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
    data = tmp_path / "data"
    shutil.copytree(prepared, data, ignore=shutil.ignore_patterns(VERIFIED_FILE))
    manifest = TrainingData(DataConfig(data, seq_len=32), 0, World.single_process("cpu")).manifest
    (data / VERIFIED_FILE).unlink(missing_ok=True)
    first, again = run_ranks(2, "verification.py", data, tmp_path / "names.json")
    shards = [s.name for split in ("train", "validation") for s in manifest.split(split).shards]
    assert first == [shards[0::2], shards[1::2]]
    assert all(first), "each process has a share"
    assert again == [[], []], "remembered for all"


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_workers_read_the_same_samples_however_they_start(prepared, start_method):
    dataset = TokenDataset(prepared, "train", seq_len=32, seed=0)
    assert len(pickle.dumps(dataset)) < 2000, "no token is sent to a worker"
    loader = torch.utils.data.DataLoader(
        dataset, sampler=[3, 1, 2], num_workers=1, multiprocessing_context=start_method
    )
    for index, sample in zip([3, 1, 2], loader, strict=True):
        assert torch.equal(sample["input_ids"][0], dataset[index]["input_ids"])
