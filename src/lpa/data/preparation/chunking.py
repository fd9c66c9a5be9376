"""Documents split into chunks that a tokenizer encodes to the same ids as the whole."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from lpa.data.preparation.word_cache import supports_word_cache
from lpa.data.sources.documents import Fragment
from lpa.data.text_encoder import TextEncoder

# A tokenizer is several times faster on a few thousand characters than on a million.
CHUNK_CHARACTERS = 4096
_PROBE_CHARACTERS = 32
_MAX_FAILURES = 64
# White space with text on both sides, which is more than a single line end or space.
_RUN = re.compile(r"(?<=\S)[ \t\r\n\u3000]{1,16}(?=\S)")

Key = TypeVar("Key")


class Chunker:
    """Splits text where the token ids do not show it.

    A tokenizer that splits text into words first gives the same ids for two parts as for the whole
    if the boundary lies between two words. Candidates are single line ends between two lines of text,
    then spaces, then other white space; each is tried by encoding its neighborhood in one and in two
    parts, unless the tokenizer splits by a rule that is known. A tokenizer for which no candidate holds
    (one that marks the beginning of a text, say) gets its documents whole.

    Args:
        encoder: of the text; None where there are no ids to keep the same, since the text is for training
            a tokenizer.
    """

    def __init__(self, encoder: TextEncoder | None) -> None:
        self._encoder = encoder
        by_words = encoder is not None and supports_word_cache(encoder.backend)
        is_safe = encoder is None or by_words
        # The best first; a kind is tried only where a stretch of text has no boundary of an earlier one.
        self._kinds = [
            _Kind(_after_line_ends, is_safe),
            _Kind(_before_spaces, is_safe),
            _Kind(_within_runs, encoder is None),
            _Kind(_after_runs, encoder is None),
        ]

    def chunk(self, fragments: Iterable[tuple[Key, Fragment]]) -> Iterator[tuple[Key, Fragment]]:
        """Fragments of about `CHUNK_CHARACTERS` characters, each with the key that its document came with."""
        pending = ""
        searched = 0  # no boundary is before this place in `pending`
        for key, fragment in fragments:
            pending += fragment.text
            start = 0
            while True:
                searched = max(searched, start + CHUNK_CHARACTERS)
                end, searched = self._next_boundary(pending, searched)
                if end is None:
                    break
                yield key, Fragment(pending[start:end], is_last=False)
                start = end
            pending, searched = pending[start:], searched - start
            if fragment.is_last:
                yield key, Fragment(pending, is_last=True)
                pending, searched = "", 0

    def _next_boundary(self, text: str, first: int) -> tuple[int | None, int]:
        """The next boundary from `first` on, well before the end of what is known.

        Returns:
            The boundary, if there is one, and where the search for the next begins.
        """
        limit = len(text) - _PROBE_CHARACTERS
        while first < limit:
            end_of_stretch = min(limit, first + 4 * CHUNK_CHARACTERS)
            for kind in self._kinds:
                for boundary in kind.candidates(text, first, end_of_stretch):
                    if kind.failures >= _MAX_FAILURES or boundary > limit:
                        break
                    if kind.is_safe or self._same_ids(text, boundary):
                        kind.failures = 0
                        return boundary, first
                    kind.failures += 1
            if end_of_stretch == limit:
                break
            first = end_of_stretch
        return None, first

    def _same_ids(self, text: str, boundary: int) -> bool:
        assert self._encoder is not None
        before = text[max(0, boundary - _PROBE_CHARACTERS) : boundary]
        after = text[boundary : boundary + _PROBE_CHARACTERS]
        whole, first, second = self._encoder.encode_batch([before + after, before, after])
        return whole == first + second


@dataclass
class _Kind:
    """A kind of candidates for boundaries.

    Attributes:
        candidates: those between two places of a text, in order.
        is_safe: whether each is a boundary, so that none has to be tried.
        failures: how many in a row were none.
    """

    candidates: Callable[[str, int, int], Iterator[int]]
    is_safe: bool
    failures: int = 0


def _single(mark: str, text: str, first: int, end: int) -> Iterator[int]:
    """Where a mark stands between characters that are not white space."""
    position = text.find(mark, first, end)
    while position != -1:
        if not text[position - 1].isspace() and not text[position + 1].isspace():
            yield position
        position = text.find(mark, position + 1, end)


def _after_line_ends(text: str, first: int, end: int) -> Iterator[int]:
    # A line end belongs to what is before it.
    return (position + 1 for position in _single("\n", text, first, end))


def _before_spaces(text: str, first: int, end: int) -> Iterator[int]:
    # A space belongs to what is after it.
    return _single(" ", text, first, end)


def _within_runs(text: str, first: int, end: int) -> Iterator[int]:
    # GPT-2's rule ends a word before the last character of a run.
    return (run.end() - 1 for run in _RUN.finditer(text, first, end))


def _after_runs(text: str, first: int, end: int) -> Iterator[int]:
    # Later rules keep line ends together.
    return (run.end() for run in _RUN.finditer(text, first, end))
