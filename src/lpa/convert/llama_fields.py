"""What the configuration of an LPA model and that of a stock Llama have in common."""

from dataclasses import fields
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig

from lpa.model.configuration_lpa import LPAConfig

_OF_EVERY_MODEL = {field.name for field in fields(PreTrainedConfig)}

# In the order of LPAConfig. Each means the same in both.
LLAMA_FIELDS = tuple(
    field.name
    for field in fields(LPAConfig)
    if field.name in {f.name for f in fields(LlamaConfig)} - _OF_EVERY_MODEL
)


def llama_values(config: PreTrainedConfig) -> dict[str, Any]:
    """The values of these fields, of the configuration of an LPA model or of one like Llama's.

    With them goes `intra_document_mask` where it is set: a stock Llama has no such field, but its
    configuration keeps it, for those who score the model.
    """
    values = {name: getattr(config, name) for name in LLAMA_FIELDS}
    if getattr(config, "intra_document_mask", False):
        values["intra_document_mask"] = True
    return values
