"""What training and serving a model will cost, before a weight exists."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lpa.errors import LPAWarning, UserError, did_you_mean, expected_one_of
from lpa.lowrank import break_even_rank
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.cost import (
    forward_flops_per_token,
    parameter_count,
    projection_parameter_count,
    sparse_support_bytes,
    training_flops_per_token,
)
from lpa.model.loading import config_fields, lpa_config, model_directory
from lpa.model.modeling_lpa import LPAForCausalLM, LPAModel
from lpa.model.presets import PRESETS, override_fields, preset_config

# The rank of each projection of a layer, in their order; None where it is dense.
LayerRanks = tuple[int | None, ...]

# What a configuration without low rank must say.
_NO_METHOD = {"low_rank_method": None, "sparse_density": None}

# By what models are matched, see `model_cost`.
COST_KINDS = ("params", "flops", "cache")

_MASTER_BYTES = 4  # weights, gradients and both AdamW moments are float32

_RESIDUAL_BYTES = 4  # under autocast too, the hidden states between layers are float32


@dataclass
class Plan:
    """Costs of one model; the keys of `lpa plan --json`.

    Attributes:
        seq_len: tokens per sequence.
        parameters: `total`, and by part: `embedding`, `attention`, `ffn`, `norms`, `head`.
        flops_per_token: `forward`, and `training` (forward and backward), over `seq_len` tokens.
        kv_cache_bytes_per_token: `plain` (keys and values) and `latent` (as `LatentCache` holds them).
        break_even_rank: by projection, the rank at which it costs what the dense one does.
        memory_bytes_per_device: `weights`, `gradients`, `optimizer` (sharded over the devices) and
            `activations` (of one device's sequences).
    """

    seq_len: int
    parameters: dict[str, int]
    flops_per_token: dict[str, int]
    kv_cache_bytes_per_token: dict[str, int]
    break_even_rank: dict[str, float]
    memory_bytes_per_device: dict[str, int]


def open_planned_config(
    model: LPAConfig | PreTrainedModel | str | Path, **overrides: Any
) -> LPAConfig:
    """The configuration that a preset, a file, a directory or a model means, with some fields changed.

    Raises:
        UserError: it is none of them, a field is not accepted, or a rank is given and nothing would have it.
    """
    changes = {name: value for name, value in overrides.items() if value is not None}
    if {"placement", "rank"} & changes.keys():  # which the ranks of a model would override
        changes = {"ranks": None, **changes}
    config = _changed_config(model, changes)
    if "rank" in changes and not _has_low_rank(config):
        raise UserError(
            f"--rank: got {changes['rank']} where all projections are dense; expected a low-rank "
            "--placement with it"
        )
    return config


def _has_low_rank(config: LPAConfig) -> bool:
    return any(
        config.projection_rank(name, layer) is not None
        for name in config.projections
        for layer in range(config.num_hidden_layers)
    )


def _changed_config(
    model: LPAConfig | PreTrainedModel | str | Path, changes: dict[str, Any]
) -> LPAConfig:
    if isinstance(model, str) and model in PRESETS:
        return preset_config(model, **changes)
    if isinstance(model, PreTrainedModel):
        model = model.config
    if isinstance(model, LPAConfig):
        return lpa_config(override_fields(model.to_diff_dict(), changes), "model")
    if not isinstance(model, str | Path):
        raise UserError(
            f"model: got a {type(model).__name__}; expected a preset, a path, or an LPA model"
        )
    path = Path(model)
    if not path.exists():
        raise UserError(
            f"model: got {str(model)!r}; expected a config.json, a directory, or one of the presets "
            f"{', '.join(PRESETS)}{did_you_mean(model, PRESETS)}"
        )
    file = path if path.is_file() else model_directory(path) / "config.json"
    return lpa_config(override_fields(config_fields(file), changes), f"model {file}")


def plan_model(
    config: LPAConfig,
    *,
    seq_len: int,
    batch_size: int = 1,
    devices: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """Plan a model on the meta device.

    Args:
        seq_len: tokens per sequence.
        batch_size: sequences per device and forward pass.
        devices: that weights, gradients and optimizer states are sharded over.
        dtype: of activations and cache.

    Raises:
        UserError: a value below 1, or a context beyond the model's positions.
    """
    for name, value in (("seq-len", seq_len), ("batch-size", batch_size), ("devices", devices)):
        if value < 1:
            raise UserError(f"--{name}: got {value}; expected at least 1")
    if seq_len > config.max_position_embeddings:
        raise UserError(
            f"--seq-len: got {seq_len}; the model has {config.max_position_embeddings} positions"
        )
    parts = parameter_breakdown(config)
    shard = -(-parts["total"] * _MASTER_BYTES // devices)
    return Plan(
        seq_len=seq_len,
        parameters=parts,
        flops_per_token={
            "forward": forward_flops_per_token(config, seq_len),
            "training": training_flops_per_token(config, seq_len),
        },
        kv_cache_bytes_per_token=kv_cache_bytes(config, dtype.itemsize),
        break_even_rank={
            name: break_even_rank(*config.projection_shape(name)) for name in config.projections
        },
        memory_bytes_per_device={
            "weights": shard + sparse_support_bytes(config),
            "gradients": shard,
            "optimizer": 2 * shard,
            "activations": activation_bytes(
                config, seq_len=seq_len, batch_size=batch_size, dtype=dtype
            ),
        },
    )


def parameter_breakdown(config: LPAConfig) -> dict[str, int]:
    """Parameters by part, counted on the meta device."""
    with torch.device("meta"):
        model = LPAForCausalLM(config)

    def count(*patterns: str) -> int:
        return sum(
            p.numel() for n, p in model.named_parameters() if any(mark in n for mark in patterns)
        )

    parts = {
        "embedding": count("embed_"),
        "attention": count(".self_attn."),
        "ffn": count(".mlp."),
        "norms": count("norm."),
        "head": count("lm_head."),
    }
    assert sum(parts.values()) == parameter_count(config)
    return {"total": parameter_count(config), **parts}


def kv_cache_bytes(config: LPAConfig, itemsize: int) -> dict[str, int]:
    """Bytes that a token takes in all layers: of keys and values, or of what `LatentCache` holds.

    That is latents where the projections are low-rank, but for keys only where positions are learned.
    """
    width = config.projection_shape("k_proj")[1]
    plain = latent = 0
    for layer in range(config.num_hidden_layers):
        for name in ("k_proj", "v_proj"):
            rank = config.projection_rank(name, layer)
            turned = name == "k_proj" and config.decoder_type == "llama"
            plain += width
            has_latent = rank is not None and config.low_rank_method is None and not turned
            latent += rank if rank is not None and has_latent else width
    return {"plain": plain * itemsize, "latent": latent * itemsize}


def activation_bytes(
    config: LPAConfig, *, seq_len: int, batch_size: int, dtype: torch.dtype
) -> int:
    """What autograd keeps between forward and backward of the decoder layers and the loss.

    Measured, not estimated: one layer of each kind runs on fake tensors, which have shapes and no content,
    in float32 or, as in training, under the CPU's autocast, and every tensor saved for the backward pass
    counts once, weights (with the copies that autocast makes of them) and rotary tables apart. Attention
    keeps what a fused kernel keeps: queries, keys, values, output and one number per query and head. Of
    the head only the hidden states count, as the loss in chunks keeps no logits.
    """
    total = batch_size * seq_len * config.hidden_size * _RESIDUAL_BYTES  # what the head reads
    for ranks, count in layer_kinds(config).items():
        one = replace_layers(config, [ranks])
        total += count * _layer_activation_bytes(one, seq_len, batch_size, dtype)
    return total


def layer_kinds(config: LPAConfig) -> Counter[LayerRanks]:
    """How many layers have which ranks."""
    return Counter(
        tuple(config.projection_rank(name, layer) for name in config.projections)
        for layer in range(config.num_hidden_layers)
    )


def replace_layers(config: LPAConfig, layers: Sequence[LayerRanks]) -> LPAConfig:
    """A copy that has these layers instead, each with one rank per projection."""
    by_projection = zip(config.projections, zip(*layers, strict=True), strict=True)
    return replace_fields(
        config,
        num_hidden_layers=len(layers),
        dense_layers=None,
        ranks={name: list(ranks) for name, ranks in by_projection},
        **({} if any(map(any, layers)) else _NO_METHOD),
    )


def _layer_activation_bytes(
    config: LPAConfig, seq_len: int, batch_size: int, dtype: torch.dtype
) -> int:
    """Bytes saved for the backward pass of the only layer of a model."""
    saved: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage  # held, so that no other tensor takes its place
        return tensor

    with torch.device("meta"):
        # Its weights have the dtype of the products, as autocast would keep a copy.
        model = LPAModel(config).train()
        for branch in (model.layers[0].self_attn, model.layers[0].mlp):
            branch.to(dtype)
    model.set_attn_implementation(_FUSED_ATTENTION)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        leaf = torch.empty(batch_size, seq_len, config.hidden_size, requires_grad=True)
        hidden = leaf.clone()  # of a leaf, autocast would keep one copy for all that read it
        inputs: dict[str, Any] = {}
        if config.decoder_type == "llama":
            # Shapes alone: some kinds of RoPE compute their tables by the largest position.
            table = torch.empty(1, seq_len, 2 * model.rotary_emb.inv_freq.numel())
            inputs["position_embeddings"] = table, table.clone()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
        ):
            model.layers[0](hidden, **inputs)
    apart = [*model.parameters(), *inputs.get("position_embeddings", ())]
    known = {tensor.untyped_storage()._cdata for tensor in apart}
    return sum(storage.nbytes() for key, storage in saved.items() if key not in known)


_FUSED_ATTENTION = "lpa_plan"


class _FusedAttention(torch.autograd.Function):
    """Stands for a fused kernel: computes nothing, keeps what such a kernel keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        statistics = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, statistics)
        return output


def _plan_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    query, key = query.to(value.dtype), key.to(value.dtype)  # which RoPE gives in float32
    return _FusedAttention.apply(query, key, value).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(_FUSED_ATTENTION, _plan_attention)


@dataclass
class CostMatch:
    """One way to spend what low rank saves: a field of the configuration, its value, the result.

    Attributes:
        field, value: what to set.
        ratio: parameters or FLOPs over those of the dense model.
    """

    field: str
    value: int
    ratio: float

    @property
    def within_one_percent(self) -> bool:
        return abs(self.ratio - 1) <= 0.01


def model_cost(config: LPAConfig, cost_kind: str, seq_len: int) -> int:
    """One cost of a model, by which others are matched.

    Args:
        cost_kind: `params`; `flops` (forward, per token, over `seq_len`); or `cache`, the bytes per token
            of a cache of one-byte elements, of latents where there are any.

    Raises:
        UserError: another `cost_kind`.
    """
    if cost_kind == "params":
        return parameter_count(config)
    if cost_kind == "cache":
        return kv_cache_bytes(config, itemsize=1)["latent"]
    if cost_kind == "flops":
        return forward_flops_per_token(config, seq_len)
    raise UserError(f"cost: got {cost_kind!r}; {expected_one_of(cost_kind, COST_KINDS)}")


def match_dense_cost(config: LPAConfig, cost_kind: str, *, seq_len: int) -> list[CostMatch]:
    """The wider FFN, the layers, or the higher rank at which a model costs what its dense twin does.

    The surplus-parameter study of Lv et al. 2024 compares at such equal cost.

    Args:
        cost_kind: `params` or `flops` (forward, over `seq_len`).

    Raises:
        UserError: another `cost_kind`, or a model without low rank.
    """
    if cost_kind not in ("params", "flops"):
        raise UserError(f"--match: got {cost_kind!r}; expected params or flops")
    if projection_parameter_count(config) == projection_parameter_count(dense_config(config)):
        raise UserError("--match: the model is dense; expected a low-rank placement")

    dense = model_cost(dense_config(config), cost_kind, seq_len)
    limits = {
        "intermediate_size": 16 * config.intermediate_size,
        "num_hidden_layers": 16 * config.num_hidden_layers,
    }
    by_rank = [name for name in config.projections if config.rank_and_field(name, 0)[1] == "rank"]
    if by_rank:
        limits["rank"] = min(min(config.projection_shape(name)) for name in by_rank)
    if any(isinstance(rank, list) for rank in (config.ranks or {}).values()):
        del limits["num_hidden_layers"]  # a further layer would have no ranks
    matches = []
    for field, limit in limits.items():

        def with_value(value: int, field: str = field) -> int:
            return model_cost(replace_fields(config, **{field: value}), cost_kind, seq_len)

        value = closest_value(with_value, dense, getattr(config, field), limit)
        matches.append(CostMatch(field, value, with_value(value) / dense))
    return matches


def dense_config(config: LPAConfig) -> LPAConfig:
    """A configuration of the same sizes with every projection dense."""
    return replace_fields(config, placement="none", ranks=None, **_NO_METHOD)


def replace_fields(config: LPAConfig, **changes: Any) -> LPAConfig:
    """A changed copy, without the warnings that a rank tried on the way may raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LPAWarning)
        return LPAConfig(**(config.to_diff_dict() | changes))


def closest_value(cost: Callable[[int], int], target: int, low: int, high: int) -> int:
    """The value from low to high whose cost, which grows with it, is closest to the target."""
    first, last = low, high
    while first < last:
        middle = (first + last) // 2
        if cost(middle) < target:
            first = middle + 1
        else:
            last = middle
    candidates = [value for value in (first - 1, first) if low <= value <= high]
    return min(candidates, key=lambda value: abs(cost(value) - target))
