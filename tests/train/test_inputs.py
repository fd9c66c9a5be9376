import pytest
import torch

from lpa.data.dataset import TokenDataset
from lpa.train.config import DataConfig
from lpa.train.distributed import World
from lpa.train.inputs import RunData, StepReader


def read(stream, data_rank, data_size, *, start=0, steps=3, batch_size=8, micro_batch=2):
    reader = StepReader(
        stream,
        torch.device("cpu"),
        start=start,
        steps=steps,
        batch_size=batch_size,
        micro_batch=micro_batch,
        data_rank=data_rank,
        data_size=data_size,
        workers=0,
    )
    return [reader.next_step() for _ in range(steps)]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_step_has_the_same_samples_however_many_processes_read(prepared, processes):
    stream = TokenDataset(prepared, "train", context=32, seed=0)
    by_process = [read(stream, rank, processes, start=16) for rank in range(processes)]
    for step in range(3):
        numbers = [n for own in by_process for batch in own[step] for n in batch.samples]
        first = 16 + 8 * step
        assert sorted(numbers) == list(range(first, first + 8))


def test_a_micro_batch_knows_its_samples(prepared):
    stream = TokenDataset(prepared, "train", context=32, seed=0)
    for batch in read(stream, 1, 2)[1]:
        for row, number in enumerate(batch.samples):
            assert torch.equal(batch.inputs["input_ids"][row], stream[number]["input_ids"])
        assert batch.targets == 2 * 32


def test_the_identity_is_of_tokens_and_tokenizer(prepared):
    data = RunData(DataConfig(prepared, context=32), 0, World.alone("cpu"))
    assert set(data.identity) == {"data.tokens", "data.tokenizer"}
    assert data.identity["data.tokenizer"] == data.manifest.tokenizer_sha256
