"""How well a model predicts a text, as numbers; nothing here needs torch."""

import math
from dataclasses import dataclass

from lpa.storage.records import Count


@dataclass
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        tokens: tokens scored: all but the first.
        loss: mean negative log-likelihood per token, in nats.
        perplexity: exp(loss).
        word_perplexity: exp(total / words), words being runs without whitespace.
        bits_per_byte: total in bits / bytes of UTF-8. This and word_perplexity do not depend on
            the tokenizer; nan where the amount of text is unknown.
    """

    tokens: Count
    loss: float
    perplexity: float
    word_perplexity: float
    bits_per_byte: float

    @classmethod
    def from_total_nll(cls, total: float, *, tokens: int, words: int, bytes: int) -> "Perplexity":
        """From the total negative log-likelihood in nats."""
        return cls(
            tokens=tokens,
            loss=total / tokens,
            perplexity=_exp(total / tokens),
            word_perplexity=_exp(total / words) if words else math.nan,
            bits_per_byte=total / math.log(2) / bytes if bytes else math.nan,
        )


def _exp(value: float) -> float:
    """exp without an overflow error: the word perplexity of a bad model can exceed a float."""
    return math.exp(value) if value < 700 else math.inf
