"""Positions of tokens where a caller gives none, and their limit where they are learned."""

import torch
from torch import Tensor

from lpa.model.configuration_lpa import LPAConfig


def default_positions(
    config: LPAConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    past_seen_tokens: int | Tensor,
) -> Tensor:
    """The positions of tokens; (1, sequence), or (batch, sequence) where padding matters.

    Learned positions count from the first token that the mask does not leave out, as those of `generate`
    do, so that padding on the left changes nothing. Rotary ones are relative in any case.

    Args:
        config: of the model.
        inputs_embeds: (batch, sequence, width).
        attention_mask: (batch, past and present tokens), 1 where there is a token.
        past_seen_tokens: in the cache.
    """
    length = inputs_embeds.shape[1]
    if (
        config.decoder_type == "paper"
        and attention_mask is not None
        and attention_mask.dim() == 2
        and isinstance(past_seen_tokens, int)
        and attention_mask.shape[1] == past_seen_tokens + length
    ):
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    positions = torch.arange(length, device=inputs_embeds.device) + past_seen_tokens
    return positions.unsqueeze(0)


def check_positions(
    config: LPAConfig, position_ids: Tensor, past_seen_tokens: int | Tensor
) -> None:
    """Refuse learned positions that do not exist; without this a lookup would fail deep in a kernel.

    Rows of packed or padded sequences may be longer than any of their positions, which are looked at only
    in rows of that length, since a GPU has to be waited for.

    Raises:
        ValueError: naming the position.
    """
    limit = config.max_position_embeddings
    if not isinstance(past_seen_tokens, int) or past_seen_tokens + position_ids.shape[1] <= limit:
        return
    if (last := int(position_ids.max())) >= limit:
        raise ValueError(
            f"sequence length: got position {last}; expected at most {limit - 1}, since "
            f"max_position_embeddings is {limit}"
        )
