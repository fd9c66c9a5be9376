import itertools
import subprocess
import sys

import pytest
import torch

from lpa.data import TokenDataset
from lpa.data.dataloader import build_dataloader
from lpa.data.dataset import document_position_ids

START, STOP = 700, 1000


@pytest.fixture(scope="module")
def dataset(prepared):
    return TokenDataset(prepared, "train", seq_len=16, seed=3)


@pytest.fixture(scope="module")
def expected(dataset):
    return torch.stack([dataset[index]["input_ids"] for index in range(START, STOP)])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_ranks_and_workers_give_one_stream(dataset, expected, world_size, num_workers):
    by_rank = [
        torch.cat(
            [
                batch["input_ids"]
                for batch in build_dataloader(
                    dataset,
                    batch_size=4,
                    start=START,
                    stop=STOP,
                    rank=rank,
                    world_size=world_size,
                    num_workers=num_workers,
                )
            ]
        )
        for rank in range(world_size)
    ]
    together = [row for rows in itertools.zip_longest(*by_rank) for row in rows if row is not None]
    assert torch.equal(torch.stack(together), expected)


def test_reading_draws_nothing_from_the_generator_of_the_model(dataset):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(build_dataloader(dataset, batch_size=2, start=0, stop=8))
    assert torch.equal(torch.get_rng_state(), before)


def test_positions_begin_again_after_the_end_of_a_text():
    tokens = torch.tensor([5, 0, 7, 8, 0, 0, 9])
    assert document_position_ids(tokens, 0).tolist() == [0, 1, 0, 1, 2, 0, 0]
    assert document_position_ids(tokens[:1], 0).tolist() == [0]


def test_documents_of_a_sample_can_be_separated(prepared):
    plain = TokenDataset(prepared, "train", seq_len=64, seed=0)
    apart = TokenDataset(prepared, "train", seq_len=64, seed=0, intra_document_mask=True)
    starts = 0
    for index in range(len(plain)):
        sample = apart[index]
        assert torch.equal(sample["input_ids"], plain[index]["input_ids"])
        starts += int((sample["position_ids"][1:] == 0).sum())
    assert "position_ids" not in plain[0]
    assert starts == 2  # three documents, whose last end-of-text has no successor


HOLDS_A_LOADER = """
import sys
from pathlib import Path
from lpa.data.dataloader import build_dataloader
from lpa.data.dataset import TokenDataset

dataset = TokenDataset(Path(sys.argv[1]), "train", seq_len=32, seed=0)
batches = build_dataloader(dataset, batch_size=2, start=0, stop=64, num_workers=1)
next(batches)
raise RuntimeError("an error that nobody expects")
"""


def test_workers_end_with_a_process_that_ends_by_an_error(prepared, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_A_LOADER, prepared],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "an error that nobody expects" in done.stderr
