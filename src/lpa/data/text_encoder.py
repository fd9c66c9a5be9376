"""Text to token ids, the one way for documents of every kind."""

import json
import os.path
import re
from collections.abc import Sequence
from typing import Any

from lpa.errors import UserError

# What a special token is renamed to where text must not reach it: noncharacters, which are in no text.
_UNREACHABLE = "\uffff\ufffe{}\ufffe\uffff"


class TextEncoder:
    """Encodes whole texts, the same every time: nothing truncated, padded, dropped out, put before or after.

    Text is text: where it spells a special token such as `<|endoftext|>`, it becomes the tokens of these
    characters, so that no document can end another one. Added tokens that are not special are the
    tokenizer's vocabulary and are found as ever, as everything else is as the tokenizer defines it:
    normalization, a space before the first word.

    Args:
        backend: a tokenizer of the `tokenizers` library; it is copied.
        eos_token_id: the end-of-text token, special in any case.
        parse_special_tokens: let text that spells a special token become that token.

    Attributes:
        backend: the tokenizer that encodes so, for `encode_batch_fast` and the like.

    Raises:
        UserError: text would become special tokens whatever is done.
    """

    def __init__(
        self, backend: Any, eos_token_id: int | None, *, parse_special_tokens: bool = False
    ) -> None:
        self.backend = type(backend).from_str(backend.to_str())
        disable_truncation_and_dropout(self.backend)
        self._special = _special_tokens(self.backend, eos_token_id)
        self._stem = os.path.commonprefix(list(self._special))  # noqa: RUF071, of characters
        longest_first = sorted(self._special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        if not parse_special_tokens:
            self.backend = _plain(self.backend, self._special, eos_token_id)

    @classmethod
    def of(cls, tokenizer: Any, *, parse_special_tokens: bool = False) -> "TextEncoder":
        """The encoder of a tokenizer from `load_tokenizer`."""
        return cls(
            tokenizer.backend_tokenizer,
            tokenizer.eos_token_id,
            parse_special_tokens=parse_special_tokens,
        )

    def encode(self, text: str) -> list[int]:
        """The token ids of a text.

        Raises:
            UserError: the tokenizer cannot encode it.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, as `encode`."""
        try:
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        # Unknown characters without an unknown token, among others; the library raises bare exceptions.
        except Exception as error:
            raise UserError(f"tokenizer: cannot encode the text ({error})") from error
        return [encoding.ids for encoding in encodings]

    def count_special(self, text: str) -> int:
        """How many places in a text spell a special token."""
        # Most texts have not even the beginning that all special tokens share.
        return len(self._pattern.findall(text)) if self._special and self._stem in text else 0


def disable_truncation_and_dropout(backend: Any) -> None:
    """Make a tokenizer of the `tokenizers` library encode whole texts, the same every time."""
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None


def decode_continuation(tokenizer: Any, prompt: list[int], added: list[int]) -> str:
    """The text that tokens add to that of a prompt, without special tokens.

    Both are decoded together, since many tokenizers drop a space in front of a text.
    """
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *added], skip_special_tokens=True)
    if whole.startswith(before):
        return whole[len(before) :]
    return tokenizer.decode(added, skip_special_tokens=True)


def _special_tokens(backend: Any, eos_token_id: int | None) -> dict[str, int]:
    """The text of each special token, the end of text among them, and its id."""
    added = backend.get_added_tokens_decoder().items()
    special = {token.content: number for number, token in added if token.special}
    end = None if eos_token_id is None else backend.id_to_token(eos_token_id)
    if end is not None:
        special[end] = eos_token_id
    # A single character is text in any case: line ends are the end-of-text token of some tokenizers.
    return {content: number for content, number in special.items() if len(content) > 1}


def _plain(backend: Any, special: dict[str, int], eos_token_id: int | None) -> Any:
    """A tokenizer that does not find special tokens in text."""
    from tokenizers import AddedToken

    end = None if eos_token_id is None else backend.id_to_token(eos_token_id)
    if end is not None:
        backend.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    backend.encode_special_tokens = True
    # Some models, unigram among them, find in text whatever is in their vocabulary.
    found = [token for token in special if _is_found(backend, token, special[token])]
    if not found:
        return backend
    state = json.loads(backend.to_str())
    unknown = _unknown_token(state["model"])
    hidden = type(backend).from_str(json.dumps(_without(state, set(found))))
    hidden.encode_special_tokens = True
    for token in found:
        # What stands for unknown characters may stand for those of its name too.
        if token != unknown and _is_found(hidden, token, special[token]):
            raise UserError(
                f"tokenizer: text that reads {token!r} would become the special token of that name"
            )
    return hidden


def _is_found(backend: Any, token: str, number: int) -> bool:
    try:
        encodings = backend.encode_batch_fast(
            [token, f"x{token}x", f" {token} ", token * 2], add_special_tokens=False
        )
    # No unknown token for these characters, so they are no text either.
    except Exception:
        return False
    return any(number in encoding.ids for encoding in encodings)


def unknown_token_id(backend: Any) -> int | None:
    """What a tokenizer makes of text that it cannot express; None where it has no such token."""
    unknown = _unknown_token(json.loads(backend.to_str())["model"])
    return None if unknown is None else backend.token_to_id(unknown)


def _unknown_token(model: dict[str, Any]) -> str | None:
    if model.get("unk_id") is not None:
        unknown: str = model["vocab"][model["unk_id"]][0]
        return unknown
    return model.get("unk_token")


def _without(state: dict[str, Any], tokens: set[str]) -> dict[str, Any]:
    """The content of a `tokenizer.json` whose model cannot find some tokens in text; all ids stay."""
    model = dict(state["model"])

    def renamed(token: str) -> str:
        return _UNREACHABLE.format(token) if token in tokens else token

    if isinstance(model["vocab"], list):
        model["vocab"] = [[renamed(token), score] for token, score in model["vocab"]]
    else:
        model["vocab"] = {renamed(token): number for token, number in model["vocab"].items()}
    if model.get("unk_token") is not None:
        model["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not tokens & {*pair, "".join(pair)}]
    added = [token for token in state["added_tokens"] if token["content"] not in tokens]
    return state | {"model": model, "added_tokens": added}
