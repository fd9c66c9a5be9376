"""Documents cut into pieces that a tokenizer encodes to the same ids as the whole."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from lpa.data.readers import Fragment
from lpa.data.text_encoder import TextEncoder
from lpa.data.words import encodes_by_words

# A tokenizer is several times faster on a few thousand characters than on a million.
TARGET = 4096
_CONTEXT = 32
_TRIES = 64

Key = TypeVar("Key")


class Cutter:
    """Cuts where it cannot be told afterwards.

    A tokenizer that splits text into words first gives the same ids for two parts as for the whole
    if the cut lies between two words. Candidates are single line ends between two lines of text, then
    spaces; each is tried by encoding its neighbourhood in one and in two parts, unless the tokenizer
    splits by a rule that is known. A tokenizer for which no candidate holds (one that marks the
    beginning of a text, say) gets its documents whole.

    Args:
        encoder: of the text; None where there are no ids to keep the same, since the text is for training
            a tokenizer.
    """

    def __init__(self, encoder: TextEncoder | None) -> None:
        self._encoder = encoder
        self._failures = 0
        self._by_words = encoder is not None and encodes_by_words(encoder.backend)

    def cut(self, fragments: Iterable[tuple[Key, Fragment]]) -> Iterator[tuple[Key, Fragment]]:
        """Fragments of about `TARGET` characters, each with the key that its document came with."""
        held = ""
        for key, fragment in fragments:
            held += fragment.text
            start = 0
            while (end := self._next_cut(held, start)) is not None:
                yield key, Fragment(held[start:end], last=False)
                start = end
            held = held[start:]
            if fragment.last:
                yield key, Fragment(held, last=True)
                held = ""

    def _next_cut(self, text: str, start: int) -> int | None:
        """The next place to cut after `start` + TARGET, well before the end of what is known."""
        first, limit = start + TARGET, len(text) - _CONTEXT
        for mark in ("\n", " "):
            # Lines first; spaces only where a stretch of text has no usable line end.
            stop = min(limit, first + 4 * TARGET)
            place = text.find(mark, first, stop)
            while place != -1 and self._failures < _TRIES:
                # A line end belongs to what is before it, a space to what is after it.
                end = place + 1 if mark == "\n" else place
                if not text[place - 1].isspace() and not text[place + 1].isspace():
                    if self._same_ids(text[end - _CONTEXT : end], text[end : end + _CONTEXT]):
                        self._failures = 0
                        return end
                    self._failures += 1
                place = text.find(mark, place + 1, stop)
        return None

    def _same_ids(self, before: str, after: str) -> bool:
        if self._encoder is None or self._by_words:
            return True
        whole, first, second = self._encoder.encode_batch([before + after, before, after])
        return whole == first + second
