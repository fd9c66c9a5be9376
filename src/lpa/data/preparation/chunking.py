"""Documents split into chunks that a tokenizer encodes to the same ids as the whole."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from lpa.data.preparation.word_cache import supports_word_cache
from lpa.data.sources.documents import Fragment
from lpa.data.text_encoder import TextEncoder

# A tokenizer is several times faster on a few thousand characters than on a million.
CHUNK_CHARACTERS = 4096
_PROBE_CHARACTERS = 32
_MAX_FAILURES = 64

Key = TypeVar("Key")


class Chunker:
    """Splits text where the token ids do not show it.

    A tokenizer that splits text into words first gives the same ids for two parts as for the whole
    if the boundary lies between two words. Candidates are single line ends between two lines of text, then
    spaces; each is tried by encoding its neighborhood in one and in two parts, unless the tokenizer
    splits by a rule that is known. A tokenizer for which no candidate holds (one that marks the
    beginning of a text, say) gets its documents whole.

    Args:
        encoder: of the text; None where there are no ids to keep the same, since the text is for training
            a tokenizer.
    """

    def __init__(self, encoder: TextEncoder | None) -> None:
        self._encoder = encoder
        self._failures = 0
        self._by_words = encoder is not None and supports_word_cache(encoder.backend)

    def chunk(self, fragments: Iterable[tuple[Key, Fragment]]) -> Iterator[tuple[Key, Fragment]]:
        """Fragments of about `CHUNK_CHARACTERS` characters, each with the key that its document came with."""
        pending = ""
        for key, fragment in fragments:
            pending += fragment.text
            start = 0
            while (end := self._next_boundary(pending, start)) is not None:
                yield key, Fragment(pending[start:end], is_last=False)
                start = end
            pending = pending[start:]
            if fragment.is_last:
                yield key, Fragment(pending, is_last=True)
                pending = ""

    def _next_boundary(self, text: str, start: int) -> int | None:
        """The next boundary after `start` + TARGET, well before the end of what is known."""
        first, limit = start + CHUNK_CHARACTERS, len(text) - _PROBE_CHARACTERS
        for mark in ("\n", " "):
            # Lines first; spaces only where a stretch of text has no usable line end.
            end_of_search = min(limit, first + 4 * CHUNK_CHARACTERS)
            position = text.find(mark, first, end_of_search)
            while position != -1 and self._failures < _MAX_FAILURES:
                # A line end belongs to what is before it, a space to what is after it.
                end = position + 1 if mark == "\n" else position
                if not text[position - 1].isspace() and not text[position + 1].isspace():
                    if self._same_ids(
                        text[end - _PROBE_CHARACTERS : end], text[end : end + _PROBE_CHARACTERS]
                    ):
                        self._failures = 0
                        return end
                    self._failures += 1
                position = text.find(mark, position + 1, end_of_search)
        return None

    def _same_ids(self, before: str, after: str) -> bool:
        if self._encoder is None or self._by_words:
            return True
        whole, first, second = self._encoder.encode_batch([before + after, before, after])
        return whole == first + second
