"""What a model costs, counted from its configuration without building it."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from lpa.lowrank import sparse_entry_count, support_dtype
from lpa.model.configuration_lpa import LPAConfig


@dataclass(frozen=True)
class _Projections:
    """Projections that are alike, in all layers.

    Attributes:
        shape: (in_features, out_features).
        rank: None where they are dense.
        layers: how many have one.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    layers: int


def _projections(config: LPAConfig) -> Iterator[_Projections]:
    for name in config.projections:
        shape = config.projection_shape(name)
        ranks = (config.projection_rank(name, layer) for layer in range(config.num_hidden_layers))
        for rank, layers in Counter(ranks).items():
            yield _Projections(name, shape, rank, layers)


def projection_parameter_count(config: LPAConfig) -> int:
    """Weights, without biases, of the projections of all layers."""
    total = 0
    for each in _projections(config):
        if each.rank is None:
            total += each.layers * math.prod(each.shape)
            continue
        total += each.layers * each.rank * sum(each.shape)
        if config.sparse_density is not None:
            total += each.layers * sparse_entry_count(*each.shape, config.sparse_density)
    return total


def sparse_support_bytes(config: LPAConfig) -> int:
    """Bytes of the places of SLTrain's sparse entries, which every process holds whole."""
    if config.sparse_density is None:
        return 0
    return sum(
        each.layers
        * sparse_entry_count(*each.shape, config.sparse_density)
        * support_dtype(*each.shape).itemsize
        for each in _projections(config)
        if each.rank is not None
    )


def _projection_macs(config: LPAConfig) -> int:
    """Multiplications with weights that a token takes: SLTrain's with the matrix that it forms."""
    if config.low_rank_method != "sltrain":
        return projection_parameter_count(config)
    shapes = [config.projection_shape(name) for name in config.projections]
    return config.num_hidden_layers * sum(inputs * outputs for inputs, outputs in shapes)


def _dense_projection_macs(config: LPAConfig) -> int:
    """The part of `_projection_macs` that dense projections take."""
    return sum(
        each.layers * math.prod(each.shape) for each in _projections(config) if each.rank is None
    )


def _projection_bias_count(config: LPAConfig) -> int:
    """Biases of the projections of all layers: the paper's decoder has one each."""
    if config.decoder_type == "llama":
        return 0
    total = 0
    for each in _projections(config):
        if each.rank is None or each.name in ("o_proj", "fc2"):
            total += each.layers * each.shape[1]
        else:
            total += each.layers * each.rank
    return total


def parameter_count(config: LPAConfig) -> int:
    """Parameters of `LPAForCausalLM(config)`, a tied head counted once."""
    embedding = config.vocab_size * config.hidden_size
    head = 0 if config.tie_word_embeddings else embedding
    head += config.vocab_size if config.lm_head_bias else 0
    if config.decoder_type == "llama":
        positions, norms = 0, (2 * config.num_hidden_layers + 1) * config.hidden_size
    else:  # LayerNorm has a weight and a bias, and there is no final one
        positions = config.max_position_embeddings * config.hidden_size
        norms = 4 * config.num_hidden_layers * config.hidden_size
    projections = projection_parameter_count(config) + _projection_bias_count(config)
    return embedding + positions + projections + norms + head


def forward_flops_per_token(config: LPAConfig, seq_len: int) -> int:
    """Floating-point operations of one token in a forward pass over `seq_len` tokens.

    A weight of a matrix costs a multiplication and an addition. Attention scores and their product
    with the values cost 2 · context · heads · head_dim each, counted over the full square as
    `torch.utils.flop_counter` does, though a causal kernel may skip half. Norms, biases, RoPE and
    other element-wise work are not counted, nor is forming the matrices of SLTrain, once per pass.
    """
    assert config.head_dim is not None
    scores = 4 * seq_len * config.num_attention_heads * config.head_dim
    head = 2 * config.vocab_size * config.hidden_size
    return 2 * _projection_macs(config) + config.num_hidden_layers * scores + head


def training_flops_per_token(config: LPAConfig, seq_len: int, *, trainable: str = "all") -> int:
    """Forward and backward: the backward pass is twice the forward (gradients of inputs and weights).

    Args:
        trainable: `all`, or `factors` where the low-rank pairs alone are: the other matrices then have no
            gradient.
    """
    total = 3 * forward_flops_per_token(config, seq_len)
    if trainable == "factors":
        total -= 2 * (_dense_projection_macs(config) + config.vocab_size * config.hidden_size)
    return total
