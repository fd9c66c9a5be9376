"""What the model writes as it learns."""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lpa.data.document_limits import encode_prompt
from lpa.data.text_encoder import decode_continuation
from lpa.errors import LPAWarning, UserError
from lpa.model.compile import eager_layers
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.storage.files import write_text_atomic
from lpa.storage.records import read_json_lines
from lpa.storage.run_directory import SAMPLES_FILE
from lpa.train.config import RunConfig


@dataclass
class _Sample:
    step: int
    text: str


def sample_text(
    model: LPAForCausalLM, tokenizer: Any, config: RunConfig, run: Path, step: int, *, write: bool
) -> str:
    """Continue `train.sample_prompt`, the likeliest token each time, and keep the text in `samples.jsonl`.

    Greedy: no random number is drawn, so training is the same with and without it.

    Args:
        tokenizer: that of the data.
        write: whether this process keeps the text. All must call this, as each holds a part of the model.

    Returns:
        The prompt with its continuation; of a prompt that is too long, its end. In a context of one token
        there is none.
    """
    prompt, positions = config.train.sample_prompt, config.data.seq_len
    ids = encode_prompt(tokenizer, prompt)
    if len(ids) >= positions:  # one token at least must fit behind
        ids = ids[len(ids) - positions + 1 :]
        prompt = tokenizer.decode(ids)
    new_tokens = min(config.train.sample_tokens, positions - len(ids)) if ids else 0
    text = prompt + (_continue(model, tokenizer, ids, new_tokens) if new_tokens > 0 else "")
    if write:
        with open(run / SAMPLES_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "text": text}) + "\n")
    return text


@torch.no_grad()
def _continue(model: LPAForCausalLM, tokenizer: Any, ids: list[int], new_tokens: int) -> str:
    inputs = torch.tensor([ids], device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    with eager_layers():
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    model.train(was_training)
    return decode_continuation(tokenizer, ids, output[0, len(ids) :].tolist())


def drop_samples_after(run: Path, step: int) -> None:
    """Leave the samples up to a step, as a run resumes from it; a line that a kill cut off goes too."""
    path = run / SAMPLES_FILE
    if not path.exists():
        return
    try:
        kept = [sample for sample in read_json_lines(path, _Sample) if sample.step <= step]
    except UserError as problem:
        warnings.warn(f"{problem}; further samples follow those", LPAWarning, stacklevel=2)
        return
    write_text_atomic(path, "".join(json.dumps(asdict(sample)) + "\n" for sample in kept))
