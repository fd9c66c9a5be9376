"""Continuations of a prompt."""

from pathlib import Path
from typing import Any

from lpa.data.document_limits import encode_prompt
from lpa.data.text_encoder import decode_continuation
from lpa.data.tokenizer import check_vocabulary
from lpa.errors import UserError
from lpa.eval.loading import load_with_tokenizer
from lpa.model.loading import positions_of

# Where nothing is asked for.
_MAX_NEW_TOKENS = 100

# Logits that are divided by far less than this overflow, and by a little less, give the likeliest token.
_LOWEST_TEMPERATURE = 1e-5


def generate_text(
    model_path: Path,
    prompt: str,
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.8,
    top_p: float = 0.95,
    num_samples: int = 1,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
) -> list[str]:
    """Continue a prompt with a trained model; returns the prompt with each continuation.

    Of the model's generation_config.json, only the tokens that end a text count.

    Args:
        model_path: a run directory or a Hugging Face directory.
        prompt: what to continue; empty: begin a document. Special tokens that it spells are those tokens,
            as in a chat template, and where the tokenizer puts a token before a text, so it does here.
        max_new_tokens: the most tokens to add; fewer where the model ends its text. None: 100, or as many as
            its positions have room for.
        temperature: 0, or next to it, takes the likeliest token each time.
        top_p: sample from the likeliest tokens that hold this much probability together.
        num_samples: how many continuations.
        seed: of the sampling.
        device, dtype: as in `load_with_tokenizer`.

    Raises:
        UserError: a bad value, no model, or a prompt beyond the model's positions.
    """
    import torch
    from transformers import GenerationConfig

    for name, value, accepted, good in (
        (
            "max_new_tokens",
            max_new_tokens,
            "at least 1",
            max_new_tokens is None or max_new_tokens >= 1,
        ),
        ("temperature", temperature, "a number from 0", 0 <= temperature < float("inf")),
        ("top_p", top_p, "above 0 and up to 1", 0 < top_p <= 1),
        ("num_samples", num_samples, "at least 1", num_samples >= 1),
    ):
        if not good:
            raise UserError(f"--{name.replace('_', '-')}: got {value}; expected {accepted}")
    model, tokenizer = load_with_tokenizer(model_path, device, dtype=dtype)
    ids = encode_prompt(tokenizer, prompt)
    check_vocabulary(max(ids) + 1, model.config, "--prompt: the text")
    positions = positions_of(model.config)
    if max_new_tokens is None:
        room = _MAX_NEW_TOKENS if positions is None else positions - len(ids)
        max_new_tokens = max(1, min(_MAX_NEW_TOKENS, room))
    if positions is not None and len(ids) + max_new_tokens > positions:
        raise UserError(
            f"--max-new-tokens: got {max_new_tokens} after a prompt of {len(ids)} tokens; "
            f"expected at most {positions} together, the model's max_position_embeddings"
        )
    torch.manual_seed(seed)
    # In place of the model's own, from which transformers would fill in what this one leaves unset.
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.eos_token_id,
        eos_token_id=_ends(model, tokenizer),
        **_sampling(temperature, top_p),
    )
    inputs = torch.tensor([ids] * num_samples, device=model.device)
    outputs = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        generation_config=model.generation_config,
    )
    continuations = outputs[:, len(ids) :].tolist()
    return [prompt + decode_continuation(tokenizer, ids, row) for row in continuations]


def _sampling(temperature: float, top_p: float) -> dict[str, Any]:
    if temperature < _LOWEST_TEMPERATURE:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the tokenizer's and those of the model, such as that of a turn of chat."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return sorted({tokenizer.eos_token_id, *ends})
