"""How much of the end of each document is held out, and where the document is cut for it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lpa.data.sources.documents import Fragment

# A shorter part is not taken where several documents together can give a longer one.
_SHORTEST_PART = 32
# However little is taken, it is at least so many parts where the documents are long enough.
_MIN_PARTS = 10
# The furthest that a cut moves to the end of a line or a word.
MAX_SHIFT = 4096


class DocumentParts(NamedTuple):
    """How many characters of a document are of each split, in this order."""

    train: int
    validation: int
    test: int

    @property
    def shift(self) -> int:
        """How far a cut for held-out text may move, so that no split gets much more or less than its part."""
        held_out = self.validation + self.test
        return min(MAX_SHIFT, min(filter(None, self), default=0) // 4) if held_out else 0


class Bound(NamedTuple):
    """From which character on a document belongs to a split, and how far that may move."""

    start: int
    split: str
    shift: int = 0


def divide_documents(lengths: Sequence[int], fractions: dict[str, float]) -> list[DocumentParts]:
    """The parts of each document, such that all together the fractions are those asked for.

    What a document is too short to give, the next ones give.

    Args:
        lengths: of the documents, in characters.
        fractions: held-out split -> fraction of all characters.
    """
    return [
        DocumentParts(length - sum(sizes.values()), sizes["validation"], sizes["test"])
        for length, sizes in zip(lengths, _divide(lengths, fractions), strict=True)
    ]


def share_of_documents(lengths: Sequence[int], fraction: float) -> list[int]:
    """How many characters each document gives, such that all together they are this fraction."""
    return [sizes["share"] for sizes in _divide(lengths, {"share": fraction})]


def _divide(lengths: Sequence[int], fractions: dict[str, float]) -> Iterator[dict[str, int]]:
    total = sum(lengths)
    shortest = {
        name: max(0.5, min(_SHORTEST_PART, total * fraction / _MIN_PARTS))
        for name, fraction in fractions.items()
    }
    due = dict.fromkeys(fractions, 0.0)
    for length in lengths:
        left, sizes = length, {}
        for name, fraction in fractions.items():
            due[name] += length * fraction
            enough = due[name] >= shortest[name]
            sizes[name] = min(left, int(due[name] + 0.5)) if enough else 0
            due[name] -= sizes[name]
            left -= sizes[name]
        yield sizes


def cut_document(
    fragments: Iterable[Fragment], bounds: Sequence[Bound]
) -> Iterator[tuple[str, Fragment]]:
    """The fragments of a document, each with its split; what is of one split ends as a document does.

    It is cut at line ends or between words where these are near. Whitespace alone is no document; it
    stays with the text after it.
    """
    split, later = bounds[0].split, list(bounds[1:])
    pending, offset = "", 0  # what is not yielded yet, and where it begins
    started = False  # whether a part of what is of this split is yielded
    for fragment in fragments:
        pending += fragment.text
        while later and (
            fragment.is_last or offset + len(pending) > later[0].start + later[0].shift
        ):
            end = _nearest_boundary(pending, later[0].start - offset, later[0].shift)
            if started or pending[:end].strip():
                yield split, Fragment(pending[:end], is_last=True)
                pending, offset, started = pending[end:], offset + end, False
            split = later.pop(0).split
        # One character more than a cut may move, as it is never before the first.
        known = max(0, later[0].start - later[0].shift - 1 - offset) if later else None
        if fragment.is_last:
            yield split, Fragment(pending, is_last=True)
        elif (text := pending[:known]).strip():
            yield split, Fragment(text, is_last=False)
            pending, offset, started = pending[len(text) :], offset + len(text), True


def _nearest_boundary(text: str, position: int, shift: int) -> int:
    """The line end next to a position if it is close, else the end of a word within `shift`."""
    if not 0 < position < len(text):
        return position
    for marks, reach in (("\n", shift // 4), ("\n ", shift)):
        first, last = max(1, position - reach), position + reach
        found = [
            place
            for mark in marks
            for place in (text.find(mark, position, last + 1), text.rfind(mark, first, position))
            if place != -1
        ]
        if found:
            return min(found, key=lambda place: abs(place - position))
    return position
