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
    share_of_documents,
)
from lpa.data.sources.documents import Fragment, read_fragments
from lpa.data.sources.listing import LeftOut, SourceFiles
from lpa.data.sources.source import source_changed

# How much of a document decides its split, so that a long one need not be read to its end first.
_HASHED_CHARACTERS = 2**16

# Whole documents are held out, or chosen by a weight, where so many of them can be expected.
_EXPECTED = 10

# What is not taken in this pass over a source.
_LEFT_OUT = ""


class SplitChunk(NamedTuple):
    """A chunk of text of a split, and whether a document of that split begins and ends with it."""

    split: str
    text: str
    is_first: bool
    is_last: bool


class CutDocument(NamedTuple):
    """A document that is cut.

    Attributes:
        parts: of each split.
        share: the characters of training text that the part of a weight beyond a whole number takes.
    """

    parts: DocumentParts
    share: int


@dataclass
class SourceScan:
    """What a first look at the sources found.

    Attributes:
        documents: how many there are; counting stops where there are enough to hold out whole ones.
        parts: those of each, where there are too few of them to hold out whole ones.
        duplicates: numbers of documents equal to an earlier one, where asked for.
        first_documents: the number of the first document of each source, as far as it was looked at.
        cut: source -> its documents, both counted from 0, where documents are cut: for held-out ends,
            or since the weight of the source is not whole and there are too few to choose from.
    """

    documents: int = 0
    first_documents: list[int] = field(default_factory=list)
    parts: list[DocumentParts] | None = None
    duplicates: set[int] = field(default_factory=set)
    cut: dict[int, dict[int, CutDocument]] = field(default_factory=dict)

    def first_document(self, source_index: int) -> int:
        """The number of the first document of a source; 0 where no number is asked for."""
        if source_index < len(self.first_documents):
            return self.first_documents[source_index]
        return 0


def scan_sources(
    sources: Sequence[SourceFiles], fractions: dict[str, float], *, deduplicate: bool = False
) -> SourceScan:
    """Count documents as far as needed, and find exact duplicates if asked to.

    Whole documents are held out where ten of them can be expected for each split, and a weight that
    is not whole takes whole documents where it can expect ten. Finding duplicates takes 16 bytes of
    memory, and some of Python's, for each document.
    """
    result = _scan_for_held_out(sources, fractions, deduplicate=deduplicate)
    for index, listed in enumerate(sources):
        parts = _parts_of_source(index, listed, result)
        if parts is not None:
            shares = share_of_documents(
                [of.train for of in parts.values()], listed.source.weight % 1
            )
            cut = map(CutDocument, parts.values(), shares)
            result.cut[index] = dict(zip(parts, cut, strict=True))
    return result


def _scan_for_held_out(
    sources: Sequence[SourceFiles], fractions: dict[str, float], *, deduplicate: bool
) -> SourceScan:
    needed = max((_EXPECTED / fraction for fraction in fractions.values() if fraction), default=1)
    result = SourceScan()
    counted: list[_Measure] = []
    seen: set[bytes] = set()
    repeated: set[bytes] = set()
    for source in sources:
        result.first_documents.append(result.documents)
        for document in _measure_documents(source):
            is_repeated = document.digest in seen
            seen.add(document.digest)
            if is_repeated and deduplicate:
                result.duplicates.add(result.documents)
                document = document._replace(length=0)
            elif is_repeated:
                repeated.add(document.digest)
            result.documents += 1
            if result.documents - len(result.duplicates) <= needed:
                counted.append(document)
            elif not deduplicate:
                return result
    if result.documents - len(result.duplicates) < needed:
        # What is held out of one of two equal documents would be training text by the other.
        once = [0 if of.digest in repeated else of.length for of in counted]
        result.parts = [
            DocumentParts(of.length, 0, 0) if of.digest in repeated else parts
            for of, parts in zip(counted, divide_documents(once, fractions), strict=True)
        ]
    return result


def _parts_of_source(
    index: int, listed: SourceFiles, scan: SourceScan
) -> dict[int, DocumentParts] | None:
    """The documents of a source, counted from 0, with their parts; None where they are not cut."""
    first = scan.first_document(index)
    if scan.parts is not None:
        end = (*scan.first_documents, scan.documents)[index + 1]
        return dict(enumerate(scan.parts[first:end]))
    broken = listed.source.weight % 1
    if not broken:
        return None
    parts: dict[int, DocumentParts] = {}
    for number, document in enumerate(_measure_documents(listed)):
        if first + number not in scan.duplicates:
            parts[number] = DocumentParts(document.length, 0, 0)
        if len(parts) >= _EXPECTED / broken:
            return None
    return parts


class _Measure(NamedTuple):
    """The characters of a document without white space at its end, and a digest of its text."""

    length: int
    digest: bytes


def _measure_documents(source: SourceFiles) -> Iterator[_Measure]:
    read, length, digest = 0, 0, hashlib.blake2b(digest_size=16)
    for fragment in read_fragments(source):
        if stripped := len(fragment.text.rstrip()):
            length = read + stripped
        read += len(fragment.text)
        digest.update(fragment.text.encode())
        if fragment.is_last:
            yield _Measure(length, digest.digest())
            read, length, digest = 0, 0, hashlib.blake2b(digest_size=16)


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
        fragments = read_fragments(listed, on_bytes, left_out)
        for index, first in enumerate(fragments):
            bounds = self._bounds(source_index, index, first.text, pass_index)
            for split, fragment in cut_document(_one_document(first, fragments), bounds):
                if split != _LEFT_OUT:
                    yield split, fragment

    def _bounds(self, source_index: int, index: int, head: str, pass_index: int) -> list[Bound]:
        """Where the splits of a document begin, which is the `index`-th of its source."""
        weight = self._sources[source_index].source.weight
        number = self._scan.first_document(source_index) + index
        if number in self._scan.duplicates:
            return [Bound(0, _LEFT_OUT)]
        documents = self._scan.cut.get(source_index)
        # Held-out text is scored once, whatever its weight in training.
        split = "train" if self._scan.parts is not None else assign_split(head, self._fractions)
        if documents is None or split != "train":
            copies = num_copies(head, weight) if split == "train" else 1
            return [Bound(0, split if pass_index < copies else _LEFT_OUT)]
        if index not in documents:
            raise source_changed(self._sources[source_index].source.path)
        return _bounds_of_cut(documents[index], weight, pass_index)


def _bounds_of_cut(document: CutDocument, weight: float, pass_index: int) -> list[Bound]:
    parts, share = document
    bounds, start = [Bound(0, "train")], parts.train
    if pass_index >= int(weight):
        # Well before what is held out, wherever that is cut in the end.
        last = parts.train - parts.shift
        end = min(share, last)
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
