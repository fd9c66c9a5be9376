"""The text that a tokenizer is trained on: all training text, or a sample of it."""

from collections.abc import Iterator
from itertools import chain

from lpa.callbacks import ProgressCallback
from lpa.data.preparation.chunking import Chunker
from lpa.data.preparation.prepare_config import PrepareConfig
from lpa.data.preparation.splitting import SourceScan, SplitAssigner

SAMPLE_CHARACTERS = 2**28


def tokenizer_training_text(
    config: PrepareConfig, scan: SourceScan, on_progress: ProgressCallback
) -> Iterator[str]:
    """The training text in order, or of more than `SAMPLE_CHARACTERS` a sample that spans all of it.

    Whenever the sample is full, the source with most text in it drops every other chunk. So small sources
    stay whole, large ones get similar shares, and each share is spread evenly over its source. Of a
    dataset on the hub only the beginning is read, as reading all of it would download it twice.
    """
    assigner = SplitAssigner(config.sources_by_split["train"], config.fractions, scan)
    total, done = config.size(), 0

    def on_bytes(size: int) -> None:
        nonlocal done
        done += size
        on_progress("reading text for the tokenizer", min(done, total), total)

    shares: list[_Share] = []
    sampled = 0
    for index, listed in enumerate(config.sources_by_split["train"]):
        shares.append(share := _Share())
        read = 0
        for chunk in assigner.source_chunks(index, Chunker(None), on_bytes):
            read += len(chunk.text)
            if chunk.split == "train":
                sampled += share.add(chunk.text)
            while sampled > SAMPLE_CHARACTERS:
                sampled -= max(shares, key=lambda share: share.characters).halve()
            if listed.source.on_hub and read >= SAMPLE_CHARACTERS:
                break
    return chain.from_iterable(share.chunks for share in shares)


class _Share:
    """The chunks of a source that are in the sample: every `stride`-th one.

    Attributes:
        chunks: their texts.
        characters: in all of them.
    """

    def __init__(self) -> None:
        self.chunks: list[str] = []
        self.characters = 0
        self._stride = 1
        self._seen = 0

    def add(self, text: str) -> int:
        """Take a chunk if it is its turn; returns the characters taken."""
        is_taken = self._seen % self._stride == 0
        self._seen += 1
        if not is_taken:
            return 0
        self.chunks.append(text)
        self.characters += len(text)
        return len(text)

    def halve(self) -> int:
        """Drop every other chunk, or half of the only one; returns the characters dropped."""
        before = self.characters
        if len(self.chunks) == 1:  # a text without a place to cut it at
            [only] = self.chunks
            self.chunks = [only[: len(only) // 2]]
        else:
            self.chunks = self.chunks[::2]
        self.characters = sum(map(len, self.chunks))
        self._stride *= 2
        return before - self.characters
