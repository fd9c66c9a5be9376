import itertools

import numpy as np
import pytest
import torch

from lpa.data import Manifest, TokenDataset, load_split_tokens
from lpa.data.dataset import permuted_index
from lpa.errors import UserError


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000])
@pytest.mark.parametrize("epoch", [0, 7])
def test_permute_is_a_permutation(size, epoch):
    assert sorted(permuted_index(i, size, seed=3, epoch=epoch) for i in range(size)) == list(
        range(size)
    )


def test_permutations_differ_by_seed_and_epoch_and_look_random():
    orders = {
        (seed, epoch): [permuted_index(i, 1000, seed=seed, epoch=epoch) for i in range(1000)]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4
    for order in orders.values():
        assert abs(np.corrcoef(order, range(1000))[0, 1]) < 0.1
        assert sum(a + 1 == b for a, b in itertools.pairwise(order)) < 10


def test_the_order_is_the_same_for_ever():
    # A run that is resumed with a later version must see the samples that it would have seen.
    order = [permuted_index(i, 10, seed=0, epoch=0) for i in range(10)]
    assert order == [5, 8, 4, 3, 9, 6, 7, 1, 2, 0]


def test_an_epoch_holds_every_window_once(prepared):
    data = TokenDataset(prepared, "train", seq_len=64, seed=1)
    tokens = load_split_tokens(prepared, "train")
    assert len(data) == (len(tokens) - 1) // 64
    windows = {}
    for index in range(len(data), 2 * len(data)):  # the second epoch
        sample = data[index]
        assert torch.equal(sample["input_ids"][1:], sample["shift_labels"][:-1])
        windows[tuple(sample["input_ids"].tolist())] = sample["shift_labels"][-1].item()
    for start in range(0, len(data) * 64, 64):
        assert windows[tuple(tokens[start : start + 64])] == tokens[start + 64]


def test_a_sample_depends_on_seed_and_index_alone(prepared):
    index = 1234
    first = TokenDataset(prepared, "train", seq_len=64, seed=1)
    for other in range(50):
        first[other]
    again = TokenDataset(prepared, "train", seq_len=64, seed=1)
    assert torch.equal(first[index]["input_ids"], again[index]["input_ids"])
    other_seed = TokenDataset(prepared, "train", seq_len=64, seed=2)
    assert not torch.equal(first[index]["input_ids"], other_seed[index]["input_ids"])


def test_windows_reach_across_shards(prepared, tmp_path):
    """The same tokens in shards of odd lengths give the same samples."""
    manifest = Manifest.load(prepared)
    tokens = np.load(prepared / "train-00000.npy")
    manifest.splits = {"train": manifest.splits["train"]}
    shards = np.split(tokens, [1, 1000, 1010])
    shard = manifest.splits["train"].shards[0]
    manifest.splits["train"].shards = []
    for number, part in enumerate(shards):
        np.save(tmp_path / f"train-{number:05d}.npy", part)
        manifest.splits["train"].shards.append(
            type(shard)(f"train-{number:05d}.npy", len(part), "unused")
        )
    manifest.save(tmp_path)
    whole = TokenDataset(prepared, "train", seq_len=50, seed=0)
    parts = TokenDataset(tmp_path, "train", seq_len=50, seed=0)
    assert len(whole) == len(parts)
    for index in range(len(whole)):
        assert torch.equal(whole[index]["input_ids"], parts[index]["input_ids"])
        assert torch.equal(whole[index]["shift_labels"], parts[index]["shift_labels"])


def copy_with_shard(prepared, tmp_path, content: bytes):
    (tmp_path / "manifest.json").write_bytes((prepared / "manifest.json").read_bytes())
    (tmp_path / "train-00000.npy").write_bytes(content)


def test_a_truncated_shard_is_refused_by_name(prepared, tmp_path):
    content = (prepared / "train-00000.npy").read_bytes()
    for truncated in (content[:-2], content[: len(content) // 2], content[:50], b""):
        copy_with_shard(prepared, tmp_path, truncated)
        with pytest.raises(UserError, match=r"train-00000\.npy: shard is truncated"):
            TokenDataset(tmp_path, "train", seq_len=64, seed=0)


def test_a_shard_of_other_length_is_refused(prepared, tmp_path):
    np.save(tmp_path / "short.npy", np.zeros(10, np.uint16))
    copy_with_shard(prepared, tmp_path, (tmp_path / "short.npy").read_bytes())
    with pytest.raises(UserError, match="the manifest says"):
        TokenDataset(tmp_path, "train", seq_len=64, seed=0)


def test_text_shorter_than_a_context_is_refused(prepared):
    tokens = len(load_split_tokens(prepared, "train"))
    TokenDataset(prepared, "train", seq_len=tokens - 1, seed=0)
    with pytest.raises(UserError, match=f"{tokens} tokens; expected at least {tokens + 1}"):
        TokenDataset(prepared, "train", seq_len=tokens, seed=0)


def test_a_missing_split_is_refused_and_the_present_named(prepared):
    with pytest.raises(UserError, match="no 'dev'; expected one of train, validation, test"):
        load_split_tokens(prepared, "dev")
