"""Which attention implementations of transformers can train here."""

from importlib.util import find_spec

import torch

from lpa.errors import UserError

# Implementation -> the module that it needs beside torch; None where torch has it.
IMPLEMENTATIONS = {
    "eager": None,
    "sdpa": None,
    "flex_attention": None,
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
}


def check_attention(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    dropout: float,
    separates_documents: bool,
    micro_batch_size: int,
) -> None:
    """Refuse an implementation that would fail in the first step, or mix what is to be kept apart.

    Args:
        name: a key of `IMPLEMENTATIONS`.
        dtype: of the arithmetic.
        dropout: of attention weights.
        separates_documents: whether documents in one sample may not attend to each other.
        micro_batch_size: samples per forward pass.

    Raises:
        UserError: it cannot run so; says what can.
    """
    module = IMPLEMENTATIONS[name]
    if name == "flex_attention" and device.type in ("cpu", "mps"):
        _refuse(name, f"which torch trains on GPUs alone; expected sdpa or eager on {device.type}")
    if name == "flex_attention" and dropout > 0:
        _refuse(name, f"which drops nothing, and model.attention_dropout {dropout}; expected sdpa")
    if module is None:
        return
    if device.type != "cuda":
        _refuse(name, f"which needs a GPU; expected sdpa or eager on {device.type}")
    if find_spec(module) is None:
        _refuse(name, f"which needs the module {module}, not installed here; expected sdpa")
    if dtype == torch.float32:
        _refuse(name, "which multiplies in 16 bits; expected it with train.dtype bfloat16")
    if separates_documents and micro_batch_size > 1:
        # transformers finds where documents begin in a batch of one sample alone.
        _refuse(
            name,
            f"with data.intra_document_mask and {micro_batch_size} samples per forward pass; expected "
            "train.micro_batch_size 1, sdpa or flex_attention",
        )


def _refuse(name: str, reason: str) -> None:
    raise UserError(f"model.attn_implementation: got {name}, {reason}")
