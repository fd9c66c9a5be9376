"""Where minimal pairs come from: text that they are made of, or a file of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lpa.data.manifest import MANIFEST_FILE
from lpa.data.sources.documents import read_documents
from lpa.data.sources.source import Source
from lpa.data.stats import decode_documents
from lpa.errors import UserError
from lpa.eval.minimal_pairs.rules import MinimalPair, pairs_from_text
from lpa.storage.records import parse_value


def pairs_from_data(source: str | Path, split: str | None) -> Iterator[MinimalPair]:
    """Pairs made of held-out text, in its order.

    Args:
        source: a prepared data directory, which its own tokenizer turns into text again, or what
            `Source.parse` takes.
        split: of a prepared data directory; by default test where there is one, else validation.

    Raises:
        UserError: nothing to read there.
    """
    if (Path(source) / MANIFEST_FILE).is_file():
        documents = decode_documents(Path(source), split)
    elif split is not None:
        raise UserError(
            f"--split {split}: {source} is not a prepared data directory, so it has no splits"
        )
    else:
        documents = read_documents([Source.parse(source)])
    for document in documents:
        yield from pairs_from_text(document)


def read_pairs(path: Path) -> Iterator[MinimalPair]:
    """The pairs of a JSON Lines file in the form of BLiMP.

    Raises:
        UserError: it cannot be read, or a line has not the fields that are needed.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--pairs {path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        where = f"--pairs {path}: line {number}"
        if not line.strip():
            continue
        try:
            fields = parse_value(json.loads(line), dict[str, Any], where=where)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: is not JSON ({error})") from error
        good, bad, phenomenon = (
            fields.get(name) for name in ("sentence_good", "sentence_bad", "UID")
        )
        if not (isinstance(good, str) and isinstance(bad, str) and good.strip() and bad.strip()):
            raise UserError(
                f"{where}: expected sentence_good and sentence_bad, a sentence each, and UID, the phenomenon"
            )
        yield MinimalPair(str(phenomenon or "all"), good, bad)
