"""What each attention head looks at: how widely, and how far back."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpa.callbacks import StepCallback
from lpa.data.dataset import document_position_ids
from lpa.errors import LPAWarning


@dataclass
class HeadStats:
    """One head, averaged over positions that see more than themselves.

    Attributes:
        layer, head: numbers.
        entropy: of the attention distribution, in nats.
        relative_entropy: entropy over its most, ln of how many positions can be seen, which a window or
            the beginning of a document limits; from 0 (one token) to 1 (all alike).
        distance: how many tokens back attention is, on average.
    """

    layer: int
    head: int
    entropy: float
    relative_entropy: float
    distance: float


@torch.no_grad()
def head_stats(
    model: Any,
    tokens: np.ndarray,
    *,
    seq_len: int,
    eos_token_id: int | None = None,
    on_progress: StepCallback = lambda done, total: None,
) -> list[HeadStats] | None:
    """Statistics of every head on a text, in whole windows of the context, one at a time.

    Args:
        model: a causal language model whose attention was loaded as `eager`, which shows its weights.
        tokens: (n,); the last, incomplete window is left out unless it is the only one.
        eos_token_id: what ends a document; a model that was trained with documents kept apart
            (`intra_document_mask` of its configuration) reads them so.
        on_progress: called with windows done and windows in all.

    Returns:
        None where the model does not show its attention, or not of which layers it is; a warning says so.
    """
    length = min(seq_len, len(tokens))
    starts = range(0, len(tokens) - length + 1, length)
    layers: list[int] | None = None
    total: list[Tensor] = []
    for done, start in enumerate(starts, 1):
        ids = torch.from_numpy(tokens[start : start + length].astype(np.int64))
        inputs = {"input_ids": ids}
        if eos_token_id is not None and getattr(model.config, "intra_document_mask", False):
            inputs["position_ids"] = document_position_ids(ids, eos_token_id)
        maps = _attention_maps(model, inputs)
        layers = _layers_of(model.config.get_text_config(), len(maps))
        if layers is None:
            warnings.warn(
                f"{type(model).__name__}: does not show its attention weights layer by layer; heads are left "
                "out",
                LPAWarning,
                stacklevel=2,
            )
            return None
        sums = [_sums(weights[0].double()) for weights in maps]
        total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
        on_progress(done, len(starts))
    assert layers is not None, "there is at least one window"
    return [
        HeadStats(layer, head, *(sums[:3] / sums[3].clamp(min=1)).tolist())
        for layer, of_layer in zip(layers, total, strict=True)
        for head, sums in enumerate(of_layer)
    ]


def _attention_maps(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """(1, heads, query, key) of each layer that shows its attention."""
    batch = {name: tensor[None].to(model.device) for name, tensor in inputs.items()}
    output = model(**batch, output_attentions=True, use_cache=False)
    return [weights for weights in getattr(output, "attentions", None) or () if weights is not None]


def _layers_of(config: Any, maps: int) -> list[int] | None:
    """The layers that so many maps are of; None where that is unknown.

    In a model that mixes attention with layers of other kinds, only the former have maps.
    """
    if maps == config.num_hidden_layers:
        return list(range(maps))
    kinds = getattr(config, "layer_types", None) or ()
    layers = [
        layer
        for layer, kind in enumerate(kinds)
        if kind.endswith("attention") and kind != "linear_attention"
    ]
    return layers if maps and len(layers) == maps else None


def _sums(weights: Tensor) -> Tensor:
    """(heads, query, key) -> (heads, 4): entropy, relative entropy and distance, added up over the queries
    that see more than themselves, and how many these are."""
    length = weights.shape[-1]
    positions = torch.arange(length, dtype=weights.dtype, device=weights.device)
    # What is masked has a weight of zero in all heads.
    visible = (weights > 0).any(0).sum(-1)
    counted = visible > 1
    entropy = torch.special.entr(weights).sum(-1)
    relative = entropy / visible.clamp(min=2).log()
    tokens_back = (positions[:, None] - positions).clamp(min=0)
    distance = (weights * tokens_back).sum(-1)
    return torch.stack(
        [(x * counted).sum(-1) for x in (entropy, relative, distance, torch.ones_like(entropy))],
        dim=-1,
    )
