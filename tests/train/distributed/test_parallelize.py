"""Real processes in every layout, against one process."""

import json

import pytest
import torch
from helpers.small_runs import small_config, small_trainer

from lpa.errors import UserError
from lpa.train.config import ParallelConfig
from lpa.train.distributed.meta_init import build_meta_model
from lpa.train.distributed.parallelize import (
    ParallelLayout,
    check_tensor_parallel_size,
    resolve_layout,
)

# Sums over shards are taken in another order than in one process: float32 rounding, which the optimizer
# amplifies from step to step (Adam divides by the root of small second moments).
LOSSES = {"rel": 2e-4}
NORMS = {"rel": 2e-3, "abs": 1e-6}  # the bias of keys has no gradient but rounding


def alone(data, steps, **fields) -> dict:
    torch.set_num_threads(1)
    trainer = small_trainer(data, steps=steps, **fields)
    losses = [trainer.train_step().loss for _ in range(steps)]
    norms = {
        name: p.detach().double().norm().item() for name, p in trainer.model.named_parameters()
    }
    return {
        "losses": losses,
        "norms": norms,
        "held": sum(p.numel() for p in trainer.model.parameters()),
        "tokens": trainer.state.tokens,
        "evaluated": trainer.evaluate(500).loss,
    }


def in_layouts(run_ranks, processes, data, layouts, steps, tmp_path, **fields) -> list[dict]:
    return run_ranks(
        processes,
        "layouts.py",
        data,
        json.dumps(layouts),
        steps,
        json.dumps(fields),
        tmp_path / "results.json",
    )


def assert_same_training(result: dict, expected: dict) -> None:
    assert result["losses"] == pytest.approx(expected["losses"], **LOSSES)
    assert result["norms"] == pytest.approx(expected["norms"], **NORMS)
    assert result["evaluated"] == pytest.approx(expected["evaluated"], **LOSSES)
    assert result["tokens"] == expected["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "layouts"),
    [
        ({"unequal": True}, [[4, 1, 1], [1, 4, 1], [2, 2, 1], [1, 2, 2], [2, 1, 2]]),
        (
            {"model": {"preset": "130m-s1", "resid_pdrop": 0.0, "vocab_size": 304}},
            [[2, 2, 1], [1, 2, 2]],
        ),
        (
            {"model": {"placement": "none", "tie_word_embeddings": True, "num_key_value_heads": 2}},
            [[1, 4, 1], [2, 1, 2]],
        ),
    ],
    ids=["low-rank", "paper-decoder", "dense-tied-grouped"],
)
def test_every_layout_trains_as_one_process_does(run_ranks, prepared, tmp_path, fields, layouts):
    expected = alone(prepared, 4, **fields)
    results = in_layouts(run_ranks, 4, prepared, layouts, 4, tmp_path, **fields)
    for layout, result in zip(layouts, results, strict=True):
        assert_same_training(result, expected)
        # No process holds more than its share, up to rows that do not divide and what tensors keep whole.
        if layout[1] == 4:
            assert result["held"] <= expected["held"] / 4 * 1.1


@pytest.mark.slow
def test_the_batch_may_be_divided_in_any_way(run_ranks, prepared, tmp_path):
    """1 × 8, 2 × 4 and 8 × 1 samples, of which unequal parts count: the loss is of tokens."""
    expected = alone(prepared, 12, unequal=True)
    accumulated = alone(prepared, 12, unequal=True, micro_batch_size=1)
    assert_same_training(accumulated, expected)
    (halves,) = in_layouts(run_ranks, 2, prepared, [[1, 2, 1]], 12, tmp_path, unequal=True)
    assert_same_training(halves, expected)
    (quarters,) = in_layouts(
        run_ranks, 2, prepared, [[2, 1, 1]], 12, tmp_path, unequal=True, micro_batch_size=2
    )
    assert_same_training(quarters, expected)


@pytest.mark.slow
def test_bfloat16_shards_train_about_as_one_process_does(run_ranks, prepared, tmp_path):
    expected = alone(prepared, 8, dtype="bfloat16")
    layouts = [[1, 2, 1], [1, 1, 2]]
    results = in_layouts(
        run_ranks, 2, prepared, layouts, 8, tmp_path, dtype="bfloat16", sample_every=8
    )
    assert (tmp_path / "samples.jsonl").read_text().count("\n") == len(layouts)
    # Sums over processes are in another order, and some of them in bfloat16, which has 8 bits.
    for result in results:
        assert result["losses"] == pytest.approx(expected["losses"], rel=5e-3)


@pytest.mark.parametrize(
    ("fields", "processes", "expected"),
    [
        ({}, 1, ParallelLayout(1, 1, 1)),
        ({}, 8, ParallelLayout(1, 8, 1)),
        ({"replicate": 2}, 8, ParallelLayout(2, 4, 1)),
        ({"replicate": 8}, 8, ParallelLayout(8, 1, 1)),
        ({"tensor": 4}, 8, ParallelLayout(1, 2, 4)),
        ({"replicate": 2, "shard": 2, "tensor": 2}, 8, ParallelLayout(2, 2, 2)),
    ],
)
def test_processes_that_are_left_share_the_weights(fields, processes, expected):
    assert resolve_layout(ParallelConfig(**fields), processes) == expected


@pytest.mark.parametrize(("fields", "processes"), [({"shard": 3}, 4), ({"replicate": 3}, 4)])
def test_a_grid_that_the_processes_do_not_fill_is_refused(fields, processes):
    with pytest.raises(UserError, match=r"parallel: .* needs 3 processes; this run has 4"):
        resolve_layout(ParallelConfig(**fields), processes)


def test_processes_that_see_the_same_samples_are_neighbours():
    layout = ParallelLayout(2, 2, 2)
    assert [layout.dp_rank(rank) for rank in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_model_that_does_not_divide_is_refused(prepared):
    config = small_config(prepared).model.build(vocab_size=300, seq_len=32)
    check_tensor_parallel_size(build_meta_model(config).config, 4)
    with pytest.raises(UserError, match=r"parallel.tensor: got 3; .* num_attention_heads \(4\)"):
        check_tensor_parallel_size(config, 3)
