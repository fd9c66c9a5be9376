"""What the decoder layers compute again in the backward pass, and whether a compiler fuses them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from lpa.errors import UserError, expected_one_of
from lpa.lowrank import LowRankLinear

ACTIVATION_CHECKPOINTING_MODES = ("none", "latent", "full")


def apply_activation_checkpointing(model: nn.Module, mode: str) -> None:
    """Choose what the decoder layers of a model keep between forward and backward, in place.

    The gradients are the same in all modes; in one process they are so to the bit.

    Args:
        model: with its layers at `model.model.layers`; may be on the meta device, must not be sharded yet.
        mode: `none` keeps what autograd asks for. `latent` keeps the latents (r wide), what dense
            projections make, and the output of attention; the d-wide results of second factors, norms,
            RoPE and other element-wise work are computed again (the idea of Korthikanti et al. 2022: give
            up what is large and cheap). `full` keeps the input of each layer alone and runs the layer
            again, a third more arithmetic (Chen et al. 2016).

    Raises:
        UserError: another mode.
    """
    if mode not in ACTIVATION_CHECKPOINTING_MODES:
        raise UserError(
            f"activation_checkpointing: got {mode!r}; "
            f"{expected_one_of(mode, ACTIVATION_CHECKPOINTING_MODES)}"
        )
    for layer in model.model.layers:
        layer.gradient_checkpointing = mode != "none"
        if mode == "full":
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        elif mode == "latent":
            layer._gradient_checkpointing_func = partial(
                checkpoint,
                use_reentrant=False,
                context_fn=partial(create_selective_checkpoint_contexts, _latent_policy(layer)),
            )


def _latent_policy(layer: nn.Module) -> Callable[..., CheckpointPolicy]:
    """The rule by which `latent` keeps or recomputes what an operation in a layer makes."""
    # A product over as many features as a rank can only be a second factor, and what ends the FFN is
    # needed for nothing within the layer.
    modules = [module for module in layer.modules() if isinstance(module, LowRankLinear)]
    config = layer.self_attn.config
    recomputed_widths = {module.rank for module in modules} | {config.intermediate_size}
    # A fused kernel draws its dropout inside. Where it does not run again, what is dropped after it is drawn
    # from another place of the stream than in the forward pass.
    keeps_attention = not (config.attention_dropout and config.resid_pdrop)

    def policy(_: Any, operation: Any, *arguments: Any, **__: Any) -> CheckpointPolicy:
        keep = keeps_attention and operation in _ATTENTION_OPS
        if operation in _MATMUL_OPS:
            keep = arguments[_MATMUL_OPS[operation]].shape[-1] not in recomputed_widths
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return policy


_aten = torch.ops.aten

# Matrix product -> which argument is the factor on the left.
_MATMUL_OPS = {_aten.mm.default: 0, _aten.addmm.default: 1, _aten.linear.default: 0}

_ATTENTION_OPS = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}
