"""How well a model predicts a text, as numbers; nothing here needs torch."""

import math
from collections.abc import Sequence
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
            the tokenizer if it can express the text; nan where the amount of text is unknown.
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


@dataclass
class ValidationPerplexity(Perplexity):
    """A perplexity and how sure it is.

    Attributes:
        standard_error: of the perplexity, by how the parts differ that were scored at a time; nan of one.
    """

    standard_error: float = math.nan

    @classmethod
    def from_sums(cls, sums: Sequence[float], *, words: int, bytes: int) -> "ValidationPerplexity":
        """From what `sums_of_parts` of all parts add up to.

        The mean loss is a ratio of two sums over parts, whose variance is that of the differences between
        each part's loss and what its tokens would have at the mean (Cochran 1977, section 6.3). exp carries
        it to the perplexity by its derivative.
        """
        parts, tokens, squared_tokens, total, squared_total, product = sums
        mean = cls.from_total_nll(total, tokens=round(tokens), words=words, bytes=bytes)
        assert isinstance(mean, cls)
        if parts > 1:
            loss = total / tokens
            squares = squared_total - 2 * loss * product + loss**2 * squared_tokens
            deviation = math.sqrt(max(squares, 0.0) * parts / (parts - 1)) / tokens
            mean.standard_error = deviation * mean.perplexity
        return mean


def _exp(value: float) -> float:
    """exp without an overflow error: the word perplexity of a bad model can exceed a float."""
    return math.inf if value >= 700 else math.exp(value)
