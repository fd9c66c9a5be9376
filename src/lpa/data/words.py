"""Encoding by words: each is encoded once, by the tokenizer itself, and looked up from then on."""

import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

# A space before anything but white space: where GPT-2's rule always ends a word.
_BOUNDARY = re.compile(r" (?=\S)")
_NO_BOUNDARY = re.compile(r" (?!\S)")
_MOST_WORDS = 2**20


def encodes_by_words(backend: Any) -> bool:
    """Whether a tokenizer gives the ids of a text word by word, so that `WordEncoder` serves it.

    That is so for a byte-level BPE with GPT-2's splitting rule, ` ?letters| ?digits| ?others|spaces`
    (Radford et al. 2019): a space that is followed by anything but white space begins a new word,
    and merges stay within a word. Python's white space includes all that of the tokenizer's rule.
    """
    state = json.loads(backend.to_str())
    splitting = state["pre_tokenizer"] or {}
    return (
        state["model"]["type"] == "BPE"
        and not state["model"].get("dropout")
        and state["normalizer"] is None
        and splitting.get("type") == "ByteLevel"
        and splitting.get("use_regex", True)
        and not splitting["add_prefix_space"]
        and not any(
            " " in token["content"] or token["lstrip"] or token["rstrip"] or token["single_word"]
            for token in state["added_tokens"]
        )
    )


class WordEncoder:
    """Encodes texts of a tokenizer for which `encodes_by_words` holds.

    Natural text repeats its words, so a table of them replaces most of the tokenizer's work.

    Args:
        backend: of the `tokenizers` library.
        dtype: of the token ids.
    """

    def __init__(self, backend: Any, dtype: str) -> None:
        self._backend = backend
        self._dtype = dtype
        self._forget()

    def _forget(self) -> None:
        self._places = _Places()
        self._ids = np.empty(0, dtype=self._dtype)  # of all words, one after another
        self._starts = np.empty(0, dtype=np.int64)
        self._lengths = np.empty(0, dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of each text."""
        if len(self._places) > _MOST_WORDS:
            self._forget()
        words = [_split(text) for text in texts]
        for parts in words:
            # What a text begins with has no space before it, and so is no word of the table as it
            # stands; the mark keeps it apart from the same letters after a space.
            parts[0] = _FIRST + parts[0]
        places = [
            np.fromiter(map(self._places.__getitem__, parts), dtype=np.int64, count=len(parts))
            for parts in words
        ]
        self._learn()
        return [self._look_up(each) for each in places]

    def _learn(self) -> None:
        """Encode the words that came into the table since the last time."""
        known = len(self._starts)
        new = [
            word[1:] if word.startswith(_FIRST) else f" {word}"
            for word in islice(self._places, known, None)
        ]
        if not new:
            return
        encodings = self._backend.encode_batch_fast(new, add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=self._dtype) for encoding in encodings]
        lengths = np.array([len(each) for each in ids], dtype=np.int64)
        starts = len(self._ids) + np.cumsum(lengths) - lengths
        self._ids = np.concatenate([self._ids, *ids])
        self._starts = np.concatenate([self._starts, starts])
        self._lengths = np.concatenate([self._lengths, lengths])

    def _look_up(self, places: np.ndarray) -> np.ndarray:
        lengths = self._lengths[places]
        ends = np.cumsum(lengths)
        # Where each token of the text lies in the table: its word's start, and on from there.
        shift = np.repeat(self._starts[places] - (ends - lengths), lengths)
        return self._ids[np.arange(ends[-1]) + shift]


def _split(text: str) -> list[str]:
    """The words of a text; the second and all after it stood behind a space."""
    # Where every space begins a word, as in most texts, the plain split does the same, faster.
    return _BOUNDARY.split(text) if _NO_BOUNDARY.search(text) else text.split(" ")


# White space, so that no word after a boundary begins with it.
_FIRST = "\n"


class _Places(dict[str, int]):
    """Word -> its place in the table; a word that is asked for comes into it."""

    def __missing__(self, word: str) -> int:
        place = self[word] = len(self)
        return place
