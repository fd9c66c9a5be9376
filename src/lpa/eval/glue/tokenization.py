"""Texts of a task as token ids for a decoder that classifies by its last token."""

import warnings
from collections.abc import Sequence
from typing import Any

from lpa.data.document_limits import default_bos_token
from lpa.data.text_encoder import TextEncoder
from lpa.errors import LPAWarning
from lpa.eval.glue.examples import Examples


def ensure_pad_token(tokenizer: Any, config: Any) -> None:
    """See to it that a tokenizer can pad, at the end; padding is never attended to, so any token does.

    Args:
        tokenizer: the model's.
        config: the model's.
    """
    tokenizer.padding_side = "right"
    pad, rows = tokenizer.pad_token_id, config.get_text_config().vocab_size
    if pad is None or pad >= rows:
        tokenizer.pad_token = tokenizer.eos_token
        warnings.warn(
            f"the tokenizer has no padding token that the model has; {tokenizer.eos_token!r} takes its place",
            LPAWarning,
            stacklevel=2,
        )


class TextPairEncoder:
    """Encodes a text, or two with the end-of-text token between.

    Args:
        tokenizer: the model's.
        max_length: most tokens; what is longer loses its end, of two texts the longer one first.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._encoder = TextEncoder.of(tokenizer)
        self._end = tokenizer.eos_token_id
        self._max_length = max_length
        bos = default_bos_token(tokenizer)
        self._prefix = [] if bos is None else [bos]
        self.num_truncated = 0

    def encode(self, examples: Examples) -> list[dict[str, Any]]:
        """`input_ids` and `labels` of each example."""
        return [
            {"input_ids": self._ids(texts), "labels": label}
            for texts, label in zip(examples.texts, examples.labels, strict=True)
        ]

    def _ids(self, texts: Sequence[str]) -> list[int]:
        parts = self._encoder.encode_batch(texts)
        max_tokens = self._max_length - len(self._prefix) - (len(parts) - 1)
        if sum(map(len, parts)) > max_tokens:
            self.num_truncated += 1
        while sum(map(len, parts)) > max_tokens:
            longest = max(parts, key=len)
            longest.pop()
        ids = list(self._prefix)
        for number, part in enumerate(parts):
            ids += [self._end] * (number > 0) + part
        return ids or [self._end]
