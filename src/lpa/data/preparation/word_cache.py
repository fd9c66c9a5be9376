"""Encoding by words: each is encoded once, by the tokenizer itself, and looked up from then on."""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain, compress, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# A space before anything but whitespace: where GPT-2's rule always ends a word.
_BOUNDARY = re.compile(r" (?=\S)")
# Where whitespace is anything but single spaces and line ends between words (in RE2's language).
_UNUSUAL_WHITESPACE = (
    r"[ \n][ \n]|\A\n| \z|"
    r"[\t\x0b\x0c\r\x1c-\x1f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
)
_MAX_WORDS = 2**20

# What stands between words where many are split at once. No word is like it: it would end at the space.
_GAP = "\0 \0"
# GPT-2's rule on ASCII and on the marks of U+2010 to U+205E, none of which is letter, digit or space.
_PLAIN = re.compile("[ \n]?[!-~\u2010-\u2027\u2030-\u205e]+")
_PARTS = re.compile(r"\0 \0|'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9\0]+|\n")


def supports_word_cache(backend: Any) -> bool:
    """Whether a tokenizer gives the ids of a text word by word, so that `WordCacheEncoder` serves it.

    That is so for a byte-level BPE with GPT-2's splitting rule, ` ?letters| ?digits| ?others|spaces`
    (Radford et al. 2019): a space that is followed by anything but whitespace begins a new word,
    and merges stay within a word. Python's whitespace includes all that of the tokenizer's rule.
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
            any(map(str.isspace, token["content"]))
            or token["lstrip"]
            or token["rstrip"]
            or token["single_word"]
            for token in state["added_tokens"]
        )
    )


class WordCacheEncoder:
    """Encodes texts of a tokenizer for which `supports_word_cache` holds.

    Natural text repeats its words, so a table of them replaces most of the tokenizer's work; words that
    are new share their parts, as punctuation, with others, so a table of parts replaces most of the rest.

    Args:
        backend: of the `tokenizers` library.
        dtype: of the token ids.
    """

    def __init__(self, backend: Any, dtype: str) -> None:
        self._backend = backend
        self._dtype = dtype
        # These are found before the rule splits anything.
        added = [
            token.content
            for token in backend.get_added_tokens_decoder().values()
            if not (token.special and backend.encode_special_tokens)
        ]
        self._added = re.compile("|".join(map(re.escape, added)) or r"(?!)")
        # The tokenizer cuts at such a token first, so the space before it stays with other white space.
        self._spaced_added = [f" {content}" for content in added]
        self._space_before_added = re.compile(rf"\s (?:{self._added.pattern})")
        self._reset()

    def _reset(self) -> None:
        self._words = _TokenTable(self._dtype)
        self._parts = _TokenTable(self._dtype)
        self._word_counts = np.empty(0, dtype=np.int64)  # without whitespace, in each word

    def encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, int]]:
        """The token ids of each text, and how many runs without whitespace it has."""
        if not texts:
            return []
        by_words = [not self._has_space_before_added(text) for text in texts]
        encoded = iter(self._encode_by_words([*compress(texts, by_words)]))
        return [
            next(encoded) if splits else self._encode_whole(text)
            for text, splits in zip(texts, by_words, strict=True)
        ]

    def _has_space_before_added(self, text: str) -> bool:
        # Hardly any text has such a token, and to look for one is far faster than the expression.
        return (
            any(spaced in text for spaced in self._spaced_added)
            and self._space_before_added.search(text) is not None
        )

    def _encode_whole(self, text: str) -> tuple[np.ndarray, int]:
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, dtype=self._dtype), len(text.split())

    def _encode_by_words(self, texts: Sequence[str]) -> list[tuple[np.ndarray, int]]:
        if not texts:
            return []
        if len(self._words.indices) > _MAX_WORDS:
            self._reset()
        words, counts, order = _split_words(texts)
        encoded = words.dictionary_encode()
        # Each different word of these texts is asked for once, not each time that it stands there.
        indices = self._words.indices_of(encoded.dictionary.to_pylist())
        self._learn_words()
        indices = indices[encoded.indices.to_numpy()]
        ids, lengths = self._words.look_up(indices)
        last = np.cumsum(counts) - 1  # the last word of each text
        ids_by_text = np.split(ids, np.cumsum(lengths)[last[:-1]])
        word_counts = np.add.reduceat(self._word_counts[indices], last + 1 - counts).tolist()
        return [(ids_by_text[index], word_counts[index]) for index in np.argsort(order)]

    def _learn_words(self) -> None:
        """Encode the words that came into the table since the last time."""
        new = [_as_in_text(word) for word in self._words.pending()]
        if not new:
            return
        self._word_counts = np.concatenate([self._word_counts, [len(word.split()) for word in new]])
        plain = np.fromiter((_PLAIN.fullmatch(word) is not None for word in new), bool, len(new))
        if self._added.search(_GAP.join(new)):
            plain &= [not self._added.search(word) for word in new]
        order = np.concatenate([np.flatnonzero(plain), np.flatnonzero(~plain)])
        joined = _GAP.join(new[index] for index in order[: plain.sum()])
        parts = _PARTS.findall(joined)
        for index in order[plain.sum() :]:
            parts += [_GAP, new[index]] if parts else [new[index]]
        indices = self._parts.indices_of(parts)
        self._learn_parts()
        ids, lengths = self._parts.look_up(indices)
        gaps = np.flatnonzero(indices == self._parts.indices[_GAP])
        lengths_by_word = np.add.reduceat(lengths, np.concatenate([[0], gaps + 1]))
        self._words.add(ids, lengths_by_word, order)

    def _learn_parts(self) -> None:
        new = list(self._parts.pending())
        # The gap is asked for with the others and stands for no token.
        encodings = self._backend.encode_batch_fast(
            ["" if part == _GAP else part for part in new], add_special_tokens=False
        )
        ids = [encoding.ids for encoding in encodings]
        self._parts.add(
            np.array(list(chain.from_iterable(ids)), dtype=self._dtype),
            np.array([len(each) for each in ids], dtype=np.int64),
        )


class _TokenTable:
    """Strings and their token ids.

    Attributes:
        indices: string -> its place in the table.
    """

    def __init__(self, dtype: str) -> None:
        self.indices = _Index()
        self._ids = np.empty(0, dtype=dtype)  # of all strings, in the order of their adding
        self._starts = np.empty(0, dtype=np.int64)  # by place
        self._lengths = np.empty(0, dtype=np.int64)

    def indices_of(self, strings: Sequence[str]) -> np.ndarray:
        """The place of each string; those that have none get the next ones."""
        return np.fromiter(map(self.indices.__getitem__, strings), np.int64, count=len(strings))

    def pending(self) -> Iterable[str]:
        """The strings whose ids were not added yet."""
        return islice(self.indices, len(self._starts), None)

    def add(self, ids: np.ndarray, lengths: np.ndarray, order: np.ndarray | None = None) -> None:
        """Add the ids of all unknown strings, one string after another.

        Args:
            ids: of all of them.
            lengths: how many each has.
            order: which of the unknown strings each is; None: in their order.
        """
        starts = len(self._ids) + np.cumsum(lengths) - lengths
        if order is not None:
            back = np.argsort(order)
            starts, lengths = starts[back], lengths[back]
        self._ids = np.concatenate([self._ids, ids])
        self._starts = np.concatenate([self._starts, starts])
        self._lengths = np.concatenate([self._lengths, lengths])

    def look_up(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of strings one after another, and how many each has."""
        lengths = self._lengths[indices]
        ends = np.cumsum(lengths)
        # Where each token is: its string's start, and on from there.
        shift = np.repeat(self._starts[indices] - (ends - lengths), lengths)
        return self._ids[np.arange(ends[-1]) + shift], lengths


def _split_words(texts: Sequence[str]) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """The words of texts as the table holds them.

    Returns:
        All words, text after text; how many words each text has; and which text that is, since those with
        odd whitespace come last.
    """
    odd = pc.match_substring_regex(pa.array(texts), _UNUSUAL_WHITESPACE).to_numpy(
        zero_copy_only=False
    )
    order = np.argsort(odd, kind="stable")
    marked = [_FIRST + texts[index] for index in order]
    rest = len(texts) - int(odd.sum())
    # Whitespace after a word always begins another one, so with nothing odd a plain split finds them all.
    plain = pc.split_pattern(
        pc.replace_substring(pa.array(marked[:rest], pa.string()), _LINE, f" {_LINE}"), " "
    )
    others = [_BOUNDARY.split(text) for text in marked[rest:]]
    words = pa.concat_arrays(
        [plain.flatten(), pa.array(list(chain.from_iterable(others)), pa.string())]
    )
    counts = np.concatenate([pc.list_value_length(plain).to_numpy(), [*map(len, others)]])
    return words, counts.astype(np.int64), order


# How a word of the table begins that has no space before it: the first of a text, and one that comes
# after a line end. No other word begins with whitespace.
_FIRST = "\r"
_LINE = "\n"


def _as_in_text(word: str) -> str:
    """A word of the table with what is before it in a text."""
    if word.startswith(_FIRST):
        return word[1:]
    return word if word.startswith(_LINE) else f" {word}"


class _Index(dict[str, int]):
    """String -> its place in a table; one that is asked for comes into it."""

    def __missing__(self, string: str) -> int:
        index = self[string] = len(self)
        return index
