"""Held-out text as a model reads it: token ids, and where each document ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpa.data.dataset import TokenSplit, load_split_tokens
from lpa.data.document_limits import document_bos_token
from lpa.data.manifest import MANIFEST_FILE, Manifest
from lpa.data.sources.documents import read_documents, read_fragments
from lpa.data.sources.listing import list_files
from lpa.data.sources.source import Source
from lpa.data.text_encoder import TextEncoder, unknown_token_id
from lpa.data.tokenizer import tokenizer_hash
from lpa.errors import UserError


@dataclass
class TokenizedText:
    """Documents one after another as in training: each ended by the end-of-text token.

    Attributes:
        tokens: (tokens,).
        ends: (documents,), the index after the last token of each.
        words, bytes: of all documents together; words are runs without whitespace.
        document_bytes: (documents,), of UTF-8; None where the text itself is not at hand.
        bos_token_id: what each document begins with; None where it begins with its text.
        eos_token_id: the end-of-text token.
        unknown_tokens: how many tokens stand for text that the tokenizer cannot express.
    """

    tokens: np.ndarray
    ends: np.ndarray
    words: int
    bytes: int
    document_bytes: np.ndarray | None
    bos_token_id: int | None
    eos_token_id: int
    unknown_tokens: int = 0

    @property
    def unknown_share(self) -> str:
        """`unknown_tokens` in words."""
        count, total = self.unknown_tokens, len(self.tokens)
        return f"{count} of {total} tokens ({count / total:.2%})"


def load_text(source: str | Path, split: str | None, tokenizer: Any) -> TokenizedText:
    """The text at `source` in the tokens of a model.

    Args:
        source: a prepared data directory, or what `Source.parse` takes.
        split: of a prepared data directory; by default test where there is one, else validation.
        tokenizer: the model's.

    Raises:
        UserError: nothing to read there, or the data was prepared with another tokenizer.
    """
    if _is_prepared(source, split):
        return _from_prepared(Path(source), split, tokenizer)
    return _from_text(source, tokenizer)


def check_text(source: str | Path, split: str | None, tokenizers: Sequence[Any]) -> None:
    """Refuse a source that `load_text` would refuse, as far as its beginning shows.

    A source on the hub is not opened.

    Args:
        source: as in `load_text`.
        split: as there.
        tokenizers: of all models that are going to read it.

    Raises:
        UserError: as `load_text`.
    """
    if _is_prepared(source, split):
        for tokenizer in tokenizers:
            manifest, chosen = _open_manifest(Path(source), split, tokenizer)
            TokenSplit(Path(source), chosen, manifest)
        return
    listed = list_files(Source.parse(source))
    if not listed.source.on_hub and next(read_fragments(listed), None) is None:
        raise _no_text(source)


def _is_prepared(source: str | Path, split: str | None) -> bool:
    if (Path(source) / MANIFEST_FILE).is_file():
        return True
    if split is not None:
        raise UserError(
            f"--split {split}: {source} is not a prepared data directory, so it has no splits"
        )
    return False


def _open_manifest(directory: Path, split: str | None, tokenizer: Any) -> tuple[Manifest, str]:
    """The manifest, and the name of the split to read."""
    manifest = Manifest.load(directory)
    if manifest.tokenizer_sha256 != tokenizer_hash(tokenizer):
        raise UserError(
            f"--data {directory}: was made with another tokenizer than the model's "
            f"(vocabulary {manifest.vocab_size} there, {len(tokenizer)} here); give the text itself, "
            "or prepare it with --tokenizer MODEL"
        )
    return manifest, split or manifest.held_out_split


def _from_prepared(directory: Path, split: str | None, tokenizer: Any) -> TokenizedText:
    manifest, split = _open_manifest(directory, split, tokenizer)
    contents = manifest.split(split)
    tokens = load_split_tokens(directory, split, manifest)
    ends = _document_ends(tokens, manifest.eos_token_id)
    bos = document_bos_token(tokenizer)
    if bos is not None and manifest.bos_token_id is None:  # of an earlier version
        tokens = np.insert(tokens, [0, *ends[:-1]], bos)
        ends += np.arange(1, len(ends) + 1)
    return TokenizedText(
        tokens=tokens,
        ends=ends,
        words=contents.words,
        bytes=contents.bytes,
        document_bytes=None,
        bos_token_id=bos,
        eos_token_id=manifest.eos_token_id,
        unknown_tokens=_count_unknown(tokens, tokenizer),
    )


def _document_ends(tokens: np.ndarray, eos_token_id: int) -> np.ndarray:
    ends = np.flatnonzero(tokens == eos_token_id) + 1
    if len(tokens) and (len(ends) == 0 or ends[-1] != len(tokens)):
        ends = np.append(ends, len(tokens))
    return ends


def _from_text(source: str | Path, tokenizer: Any) -> TokenizedText:
    encoder = TextEncoder.of(tokenizer)
    bos, eos = document_bos_token(tokenizer), tokenizer.eos_token_id
    begin = [] if bos is None else [bos]
    parts: list[np.ndarray] = []
    sizes: list[int] = []
    words = 0
    for document in read_documents([Source.parse(source)]):
        parts.append(np.array([*begin, *encoder.encode(document), eos], dtype=np.int64))
        sizes.append(len(document.encode()))
        words += len(document.split())
    if not parts:
        raise _no_text(source)
    tokens = np.concatenate(parts)
    return TokenizedText(
        tokens=tokens,
        ends=np.cumsum([len(part) for part in parts]),
        words=words,
        bytes=sum(sizes),
        document_bytes=np.array(sizes),
        bos_token_id=bos,
        eos_token_id=eos,
        unknown_tokens=_count_unknown(tokens, tokenizer),
    )


def _count_unknown(tokens: np.ndarray, tokenizer: Any) -> int:
    unknown = unknown_token_id(tokenizer.backend_tokenizer)
    # Some byte-level tokenizers name their end-of-text token as the unknown one, which they never need.
    if unknown is None or unknown == tokenizer.eos_token_id:
        return 0
    return int(np.count_nonzero(tokens == unknown))


def _no_text(source: str | Path) -> UserError:
    return UserError(f"{source}: no text")
