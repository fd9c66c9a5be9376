"""What the model writes as it learns."""

import json
from pathlib import Path
from typing import Any

import torch

from lpa.data.manifest import TOKENIZER_DIRECTORY
from lpa.data.text_encoder import TextEncoder
from lpa.data.tokenizer import load_tokenizer
from lpa.model.compile import eager_layers
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.storage.run_directory import SAMPLES_FILE
from lpa.train.config import RunConfig


def sample_text(
    model: LPAForCausalLM, config: RunConfig, run: Path, step: int, *, write: bool
) -> str:
    """Continue `train.sample_prompt`, the likeliest token each time, and keep the text in `samples.jsonl`.

    Greedy: no random number is drawn, so training is the same with and without it.

    Args:
        write: whether this process keeps the text. All must call this, as each holds a part of the model.

    Returns:
        The prompt with its continuation.
    """
    prompt, positions = config.train.sample_prompt, config.data.seq_len
    tokenizer: Any = load_tokenizer(config.data.path / TOKENIZER_DIRECTORY)
    ids = TextEncoder.of(tokenizer, parse_special_tokens=True).encode(prompt)
    # A document begins after the end of the one before; one token at least must fit behind.
    ids = ids[: positions - 1] or [tokenizer.eos_token_id]
    inputs = torch.tensor([ids], device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), eager_layers():
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=min(config.train.sample_tokens, positions - len(ids)),
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    model.train(was_training)
    text = prompt + tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
    if write:
        with open(run / SAMPLES_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "text": text}) + "\n")
    return text
