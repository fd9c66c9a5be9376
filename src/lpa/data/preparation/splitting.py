"""Which split each part of the text belongs to."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from lpa.data.preparation.chunking import Chunker
from lpa.data.preparation.document_ends import (
    MAX_SHIFT,
    Bound,
    DocumentParts,
    cut_document,
    divide_documents,
)
from lpa.data.sources.documents import Fragment, read_fragments
from lpa.data.sources.listing import LeftOut, SourceFiles

# How much of a document decides its split, so that a long one need not be read to its end first.
_HASHED_CHARACTERS = 2**16

# What is not taken in this pass over a source.
_LEFT_OUT = ""


class SplitChunk(NamedTuple):
    """A chunk of text of a split, and whether a document of that split begins and ends with it."""

    split: str
    text: str
    is_first: bool
    is_last: bool


@dataclass
class SourceScan:
    """What a first look at the sources found.

    Attributes:
        documents: how many there are; counting stops where there are enough to hold out whole ones.
        parts: those of each, where there are too few of them to hold out whole ones.
        duplicates: numbers of documents equal to an earlier one, where asked for.
        first_documents: the number of the first document of each source, as far as it was looked at.
    """

    documents: int = 0
    first_documents: list[int] = field(default_factory=list)
    parts: list[DocumentParts] | None = None
    duplicates: set[int] = field(default_factory=set)


def scan_sources(
    sources: Sequence[SourceFiles], fractions: dict[str, float], *, deduplicate: bool = False
) -> SourceScan:
    """Count documents as far as needed, and find exact duplicates if asked to.

    Whole documents are held out where ten of them can be expected for each split. Finding
    duplicates takes 16 bytes of memory, and some of Python's, for each document.
    """
    needed = max((10 / fraction for fraction in fractions.values() if fraction), default=1)
    result, lengths = SourceScan(), []
    seen: set[bytes] = set()
    for source in sources:
        result.first_documents.append(result.documents)
        length, end, digest = 0, 0, hashlib.blake2b(digest_size=16)
        for fragment in read_fragments(source):
            # Whitespace at the end is no text to hold out.
            if stripped := len(fragment.text.rstrip()):
                end = length + stripped
            length += len(fragment.text)
            if deduplicate:
                digest.update(fragment.text.encode())
            if not fragment.is_last:
                continue
            if deduplicate:
                if digest.digest() in seen:
                    result.duplicates.add(result.documents)
                    end = 0
                seen.add(digest.digest())
            result.documents += 1
            if result.documents - len(result.duplicates) <= needed:
                lengths.append(end)
            elif not deduplicate:
                return result
            length, end, digest = 0, 0, hashlib.blake2b(digest_size=16)
    if result.documents - len(result.duplicates) < needed:
        result.parts = divide_documents(lengths, fractions)
    return result


class SplitAssigner:
    """The documents of some sources, split into chunks that each belong to a split.

    Whole documents are held out by a hash of their beginning, so that a document stays in its split
    when others are added. Where there are too few of them, ends of documents are held out.
    """

    def __init__(
        self, sources: Sequence[SourceFiles], fractions: dict[str, float], scan: SourceScan
    ) -> None:
        self._sources = sources
        self._fractions = fractions
        self._scan = scan

    def chunks(
        self,
        chunker: Chunker,
        on_bytes: Callable[[int], None],
        left_out: Sequence[LeftOut],
    ) -> Iterator[SplitChunk]:
        """The chunks of all sources in order, as `source_chunks`.

        Args:
            chunker: splits the documents.
            on_bytes: called with the bytes read on disk since the last call.
            left_out: counts, for each source, the documents and files without text.
        """
        for source_index, counts in enumerate(left_out):
            yield from self.source_chunks(source_index, chunker, on_bytes, counts)

    def source_chunks(
        self,
        source_index: int,
        chunker: Chunker,
        on_bytes: Callable[[int], None],
        left_out: LeftOut | None = None,
    ) -> Iterator[SplitChunk]:
        """The chunks of a source in order; one of weight above 1 is gone through more than once."""
        weight = self._sources[source_index].source.weight
        passes = (
            chunker.chunk(
                self._documents(
                    source_index,
                    pass_index,
                    on_bytes,
                    LeftOut() if pass_index or left_out is None else left_out,
                )
            )
            for pass_index in range(math.ceil(weight))
        )
        is_first = True
        for split, chunk in chain.from_iterable(passes):
            yield SplitChunk(split, chunk.text, is_first, chunk.is_last)
            is_first = chunk.is_last

    def _documents(
        self, source_index: int, pass_index: int, on_bytes: Callable[[int], None], left_out: LeftOut
    ) -> Iterator[tuple[str, Fragment]]:
        listed = self._sources[source_index]
        # Where the survey did not come so far, no number of a document is asked for.
        number = (
            self._scan.first_documents[source_index]
            if source_index < len(self._scan.first_documents)
            else 0
        )
        fragments = read_fragments(listed, on_bytes, left_out)
        for first in fragments:
            bounds = self._bounds(number, first.text, listed.source.weight, pass_index)
            for split, fragment in cut_document(_one_document(first, fragments), bounds):
                if split != _LEFT_OUT:
                    yield split, fragment
            number += 1

    def _bounds(self, number: int, head: str, weight: float, pass_index: int) -> list[Bound]:
        """Where the splits of a document begin."""
        if number in self._scan.duplicates:
            return [Bound(0, _LEFT_OUT)]
        # Held-out text is scored once, whatever its weight in training.
        if self._scan.parts is None:
            split = assign_split(head, self._fractions)
            copies = num_copies(head, weight) if split == "train" else 1
            return [Bound(0, split if pass_index < copies else _LEFT_OUT)]
        return _bounds_of_parts(self._scan.parts[number], weight, pass_index)


def _bounds_of_parts(parts: DocumentParts, weight: float, pass_index: int) -> list[Bound]:
    """Of a document whose end is held out; of a broken weight, its part of the training text is taken."""
    bounds, start = [Bound(0, "train")], parts.train
    if pass_index >= int(weight):
        # Well before what is held out, wherever that is cut in the end.
        last = parts.train - parts.shift
        end = min(round(parts.train * (weight % 1)), last)
        bounds.append(Bound(end, _LEFT_OUT, min(end, last - end, MAX_SHIFT) // 4))
    for split in ("validation", "test"):
        if size := getattr(parts, split):
            bounds.append(Bound(start, _LEFT_OUT if pass_index else split, parts.shift))
            start += size
    return bounds


def _one_document(first: Fragment, others: Iterator[Fragment]) -> Iterator[Fragment]:
    """The fragments of the document that begins with `first`."""
    yield first
    while not first.is_last:
        first = next(others)
        yield first


def assign_split(head: str, fractions: dict[str, float]) -> str:
    """The split of a document: a pure function of its beginning."""
    position = _unit_interval(b"split", head)
    if position < fractions["validation"]:
        return "validation"
    if position < fractions["validation"] + fractions["test"]:
        return "test"
    return "train"


def num_copies(head: str, weight: float) -> int:
    """How often a training document is taken: `weight` on average."""
    if weight % 1 == 0:
        return int(weight)
    return int(weight) + (_unit_interval(b"weight", head) < weight % 1)


def _unit_interval(salt: bytes, head: str) -> float:
    digest = hashlib.blake2b(
        head[:_HASHED_CHARACTERS].encode(errors="surrogatepass"), digest_size=8, key=salt
    )
    return int.from_bytes(digest.digest(), "big") / 2**64
