"""What a token may attend to."""

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask, packed_sequence_mask_function
from transformers.utils import is_tracing


def causal_mask(
    config: PreTrainedConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    position_ids: Tensor | None,
) -> Tensor | None:
    """transformers' causal mask; positions that restart in a sample begin another document.

    transformers asks the device whether any restart, for which the host would wait in each forward pass. So
    where positions are given, the mask is made in any case.

    Args:
        inputs_embeds: (batch, sequence, width).
        attention_mask: what is padding, (batch, seen tokens), or the whole mask.
        position_ids: (batch or 1, sequence).
    """
    separate_documents = None
    asks = attention_mask is None and past_key_values is None and not is_tracing(position_ids)
    if position_ids is not None and asks:
        starts = position_ids.diff(dim=1, prepend=position_ids[:, :1] - 1) != 1
        documents = starts.cumsum(-1).expand(len(inputs_embeds), -1)
        separate_documents, position_ids = packed_sequence_mask_function(documents), None
    mask: Tensor | None = create_causal_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
        and_mask_function=separate_documents,
    )
    return mask
