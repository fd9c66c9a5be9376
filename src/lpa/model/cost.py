"""What a model costs, counted from its configuration without building it."""

from lpa.model.configuration_lpa import PROJECTIONS, LPAConfig


def _projection_parameters(config: LPAConfig) -> int:
    """Weights of the seven projections of one layer."""
    total = 0
    for name in PROJECTIONS:
        in_features, out_features = config.projection_shape(name)
        rank = config.projection_rank(name)
        total += in_features * out_features if rank is None else rank * (in_features + out_features)
    return total


def parameter_count(config: LPAConfig) -> int:
    """Parameters of `LPAForCausalLM(config)`, a tied head counted once."""
    embedding = config.vocab_size * config.hidden_size
    head = 0 if config.tie_word_embeddings else embedding
    head += config.vocab_size if config.lm_head_bias else 0
    layer = _projection_parameters(config) + 2 * config.hidden_size
    return embedding + config.num_hidden_layers * layer + config.hidden_size + head


def forward_flops_per_token(config: LPAConfig, context: int) -> int:
    """Floating-point operations of one token in a forward pass over `context` tokens.

    A weight of a matrix costs a multiplication and an addition. Attention scores and their product
    with the values cost 2 · context · heads · head_dim each, counted over the full square as
    `torch.utils.flop_counter` does, though a causal kernel may skip half. Norms, RoPE and other
    element-wise work are not counted.
    """
    assert config.head_dim is not None
    scores = 4 * context * config.num_attention_heads * config.head_dim
    layer = 2 * _projection_parameters(config) + scores
    return config.num_hidden_layers * layer + 2 * config.vocab_size * config.hidden_size


def training_flops_per_token(config: LPAConfig, context: int) -> int:
    """Forward and backward: the backward pass is twice the forward (gradients of inputs and weights)."""
    return 3 * forward_flops_per_token(config, context)
