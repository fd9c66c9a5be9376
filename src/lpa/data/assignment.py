"""Which split each part of the text belongs to."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from lpa.data.listing import LeftOut, SourceFiles
from lpa.data.pieces import Cutter
from lpa.data.readers import Fragment, read_fragments

# How much of a document decides its split, so that a long one need not be read to its end first.
_HEAD = 2**16

# From which character on a document belongs to which split.
Bounds = list[tuple[int, str]]


class Assigned(NamedTuple):
    """A piece of text of a split, and whether a document of that split ends with it."""

    split: str
    text: str
    last: bool


@dataclass
class Survey:
    """What a first look at the sources found.

    Attributes:
        documents: how many there are; counting stops where there are enough to hold out whole ones.
        lengths: characters of each, where there are too few of them to hold out whole ones.
        duplicates: numbers of documents equal to an earlier one, where asked for.
        first: the number of the first document of each source, as far as it was looked at.
    """

    documents: int = 0
    first: list[int] = field(default_factory=list)
    lengths: list[int] | None = None
    duplicates: set[int] = field(default_factory=set)


def survey(
    sources: Sequence[SourceFiles], fractions: dict[str, float], *, deduplicate: bool = False
) -> Survey:
    """Count documents as far as needed, and find exact duplicates if asked to.

    Whole documents are held out where ten of them can be expected for each split. Finding
    duplicates takes 16 bytes of memory, and some of Python's, for each document.
    """
    enough = max((10 / fraction for fraction in fractions.values() if fraction), default=1)
    result, lengths = Survey(), []
    seen: set[bytes] = set()
    for source in sources:
        result.first.append(result.documents)
        length, digest = 0, hashlib.blake2b(digest_size=16)
        for fragment in read_fragments(source):
            length += len(fragment.text)
            if deduplicate:
                digest.update(fragment.text.encode())
            if not fragment.last:
                continue
            if deduplicate:
                if digest.digest() in seen:
                    result.duplicates.add(result.documents)
                seen.add(digest.digest())
            result.documents += 1
            if result.documents <= enough:
                lengths.append(length)
            elif not deduplicate:
                return result
            length, digest = 0, hashlib.blake2b(digest_size=16)
    if result.documents < enough:
        result.lengths = lengths
    return result


class Assignment:
    """The documents of some sources, cut into pieces that each belong to a split.

    Whole documents are held out by a hash of their beginning, so that a document stays in its split
    when others are added. Where there are too few of them, the end of each is held out.
    """

    def __init__(
        self, sources: Sequence[SourceFiles], fractions: dict[str, float], found: Survey
    ) -> None:
        self._sources = sources
        self._fractions = fractions
        self._found = found

    def pieces(
        self,
        cutter: Cutter,
        advance: Callable[[int], None] = lambda size: None,
        *,
        limit: int | None = None,
        left_out: Sequence[LeftOut] | None = None,
    ) -> Iterator[Assigned]:
        """All pieces in order; a source of weight above 1 is gone through more than once.

        Args:
            cutter: cuts the documents.
            advance: called with the bytes read on disk since the last call.
            limit: go on to the next source after about so many characters.
            left_out: counts, for each source, the documents and files without text.
        """
        for position, listed in enumerate(self._sources):
            counts = LeftOut() if left_out is None else left_out[position]
            turns = (
                _by_bounds(
                    cutter.cut(
                        self._documents(position, turn, advance, LeftOut() if turn else counts)
                    )
                )
                for turn in range(math.ceil(listed.source.weight))
            )
            taken = 0
            for piece in chain.from_iterable(turns):
                yield piece
                taken += len(piece.text)
                if limit is not None and taken >= limit:
                    break

    def _documents(
        self, position: int, turn: int, advance: Callable[[int], None], left_out: LeftOut
    ) -> Iterator[tuple[Bounds, Fragment]]:
        listed = self._sources[position]
        # Where the survey did not come so far, no number of a document is asked for.
        number = self._found.first[position] if position < len(self._found.first) else 0
        bounds: Bounds = []
        begun = False
        for fragment in read_fragments(listed, advance, left_out):
            if not begun:
                bounds = self._bounds(number, fragment.text, listed.source.weight, turn)
            if len(bounds) > 1 and fragment.last and not begun:
                yield from _cut_whole(fragment.text, bounds)
            elif bounds:
                yield bounds, fragment
            begun = not fragment.last
            number += fragment.last

    def _bounds(self, number: int, head: str, weight: float, turn: int) -> Bounds:
        """Where the splits of a document begin; nothing where it is left out this time."""
        if number in self._found.duplicates:
            return []
        if self._found.lengths is not None:
            if turn:
                return []
            length = self._found.lengths[number]
            test, validation = self._fractions["test"], self._fractions["validation"]
            starts = [
                (0, "train"),
                (round(length * (1 - test - validation)), "validation"),
                (round(length * (1 - test)), "test"),
            ]
            return [(a, split) for a, split in starts if split == "train" or self._fractions[split]]
        split = split_of(head, self._fractions)
        # Held-out text is scored once, whatever its weight in training.
        copies = copies_of(head, weight) if split == "train" else 1
        return [(0, split)] if turn < copies else []


def _cut_whole(document: str, bounds: Bounds) -> Iterator[tuple[Bounds, Fragment]]:
    """A document that is known whole, cut at line ends, or at spaces where it is one line."""
    starts = [_line_end(document, start) for start, _ in bounds]
    parts: list[tuple[str, str]] = []
    for (_, split), start, stop in zip(bounds, starts, [*starts[1:], len(document)], strict=True):
        text = document[start:stop]
        # White space alone is no document; it stays with the text beside it.
        if parts and (not text.strip() or not parts[-1][1].strip()):
            before, held = parts.pop()
            split, text = (split if text.strip() else before), held + text
        parts.append((split, text))
    for split, text in parts:
        yield [(0, split)], Fragment(text, last=True)


def _line_end(text: str, position: int) -> int:
    if not 0 < position < len(text):
        return position
    for mark in ("\n", " "):
        if (found := text.rfind(mark, 0, position)) > 0:
            return found
    return position


def _by_bounds(pieces: Iterable[tuple[Bounds, Fragment]]) -> Iterator[Assigned]:
    """Each piece to the split in which it begins; a document of a split ends where the next begins."""
    offset = 0
    held: Assigned | None = None
    for bounds, piece in pieces:
        split = next(name for start, name in reversed(bounds) if start <= offset)
        if held is not None:
            yield held._replace(last=held.last or held.split != split)
        held = Assigned(split, piece.text, piece.last)
        offset = 0 if piece.last else offset + len(piece.text)
    if held is not None:
        yield held


def split_of(head: str, fractions: dict[str, float]) -> str:
    """The split of a document: a pure function of its beginning."""
    position = _unit_interval(b"split", head)
    if position < fractions["validation"]:
        return "validation"
    if position < fractions["validation"] + fractions["test"]:
        return "test"
    return "train"


def copies_of(head: str, weight: float) -> int:
    """How often a training document is taken: `weight` on average."""
    if weight % 1 == 0:
        return int(weight)
    return int(weight) + (_unit_interval(b"weight", head) < weight % 1)


def _unit_interval(salt: bytes, head: str) -> float:
    digest = hashlib.blake2b(head[:_HEAD].encode(errors="surrogatepass"), digest_size=8, key=salt)
    return int.from_bytes(digest.digest(), "big") / 2**64
