"""The costs of a model beside those of its dense twin."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lpa.data.manifest import Manifest
from lpa.errors import UserError
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.plan import (
    CostMatch,
    Plan,
    dense_config,
    match_dense_cost,
    open_planned_config,
    plan_model,
)
from lpa.study.planning.recommendation import Recommendation, recommend_rank


@dataclass
class PlannedModel:
    """A model's costs beside those of its dense twin.

    Attributes:
        plan: of the model.
        dense: of the same sizes with every projection dense.
        match: the ways to spend what low rank saves, where they were asked for.
        recommendation: a rank for attention, where it was asked for.
    """

    plan: Plan
    dense: Plan
    match: list[CostMatch]
    recommendation: Recommendation | None = None


def plan(
    model: LPAConfig | PreTrainedModel | str | Path,
    *,
    placement: str | None = None,
    rank: int | None = None,
    seq_len: int | None = None,
    batch_size: int = 1,
    devices: int = 1,
    dtype: str | torch.dtype = "bfloat16",
    match: str | None = None,
    data: str | Path | None = None,
    vocab_size: int | None = None,
    recommend: bool = False,
    bench: str | Path | None = None,
    analysis: str | Path | None = None,
) -> PlannedModel:
    """Computes what a model costs to train and to serve, beside its dense twin, before a weight exists.

    Args:
        model: a preset, a config.json, a run or Hugging Face directory, a configuration or a live model.
        placement: `none`, `attention`, `ffn` or `all`; by default the model's.
        rank: of the low-rank projections; by default the model's.
        seq_len: tokens per sequence; by default as many as the model has positions.
        batch_size: sequences per device and forward pass.
        devices: the number of devices that share weights, gradients and optimizer states.
        dtype: of activations and cache, `float32` or `bfloat16`; the rest is float32.
        match: `params` or `flops`: find the wider FFN, the layers or the higher rank that costs what the
            dense model does.
        data: a prepared data directory, whose vocabulary size the model gets.
        vocab_size: the vocabulary size, instead of `data`; by default the model's.
        recommend: also recommend a rank for attention (see `recommend_rank`).
        bench: with `recommend`, a file of what `lpa bench --json` printed on this machine.
        analysis: with `recommend`, the directory that `lpa analyze` wrote for a dense run.

    Returns:
        A `PlannedModel`: the `Plan` (parameters, FLOPs per token, bytes) of the model and of its twin.

    Raises:
        UserError: there is no such model, or a value that it cannot have.

    Example:
        costs = lpa.plan("130m", rank=64)
        print(costs.plan.parameters["total"] / costs.dense.parameters["total"])
    """
    if data is not None and vocab_size is not None:
        raise UserError(
            "--vocab-size: works only without --data, whose vocabulary size the model gets"
        )
    for name, path in (("bench", bench), ("analysis", analysis)):
        if path is not None and not recommend:
            raise UserError(f"--{name}: works only with --recommend")
    if data is not None:
        vocab_size = Manifest.load(Path(data)).vocab_size
    config = open_planned_config(model, placement=placement, rank=rank, vocab_size=vocab_size)
    seq_len = config.max_position_embeddings if seq_len is None else seq_len
    if isinstance(dtype, str):
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"--dtype: got {dtype!r}; expected float32 or bfloat16")
        dtype = getattr(torch, dtype)
    sizes: dict[str, Any] = {"batch_size": batch_size, "devices": devices, "dtype": dtype}
    return PlannedModel(
        plan=plan_model(config, seq_len=seq_len, **sizes),
        dense=plan_model(dense_config(config), seq_len=seq_len, **sizes),
        match=[] if match is None else match_dense_cost(config, match, seq_len=seq_len),
        recommendation=recommend_rank(
            config,
            seq_len=seq_len,
            bench=None if bench is None else Path(bench),
            analysis=None if analysis is None else Path(analysis),
        )
        if recommend
        else None,
    )
