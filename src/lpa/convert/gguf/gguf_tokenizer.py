"""A tokenizer as GGUF holds it and llama.cpp applies it, token for token, or a refusal that says why not.

What llama.cpp does is read from its `src/llama-vocab.cpp`: it normalizes nothing in byte-level BPE, splits
text by rules that a file names, matches added tokens by their text alone, the longest first, and sets at
most one token before a text and one after it.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import pre_tokenizers

from lpa.data.document_limits import tokens_around
from lpa.data.tokenizer import load_tokenizer
from lpa.errors import UserError

# llama.cpp makes control tokens of these, whatever a file says, and plain ones of those below.
_CONTROL_NAMES = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"),
    *("<EOT>", "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<|eom_id|>"),
    *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"),
    *("<|code_prefix|>", "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>"),
    *("<｜fim▁hole｜>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<MID>"),
    *("<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "▁<MID>", "<|code_middle|>", "<|middle|>"),
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>"),
    *("<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>", "<|return|>", "<|call|>", "<|flush|>"),
    *("<|calls|>", "</s>", "[EOS]", "<eos>", "<turn|>", "<|tool_response>", "[e~["),
}
_PLAIN_NAMES = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"}

# Settings of a BPE model that llama.cpp does not have: what each has to be, empty or false, to be none.
_MODEL_SETTINGS = (
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "byte_fallback",
    "ignore_merges",
)


class TokenKind(StrEnum):
    """The names of GGUF's types of tokens that are written."""

    NORMAL = "NORMAL"
    CONTROL = "CONTROL"
    USER_DEFINED = "USER_DEFINED"
    UNUSED = "UNUSED"


@dataclass
class GGUFTokenizer:
    """What a file says of its tokenizer.

    Attributes:
        splitting: llama.cpp's name for how text is split before merging.
        tokens, kinds: by id.
        merges: two tokens each, parted by a blank.
        bos, eos: the token that is set before or after a text; None where none is.
        chat_template: one, or several by name.
    """

    splitting: str
    tokens: list[str]
    kinds: list[TokenKind]
    merges: list[str]
    bos: int | None
    eos: int | None
    chat_template: str | dict[str, str] | None

    def fill_up(self, directory: Path, vocab_size: int) -> None:
        """Name the rows of the model's embedding that no token uses.

        Raises:
            UserError: there are more tokens than rows.
        """
        if len(self.tokens) > vocab_size:
            raise UserError(
                f"tokenizer {directory / 'tokenizer.json'}: has token {len(self.tokens) - 1}, where the "
                f"model has rows up to {vocab_size - 1}; expected the tokenizer that it was trained with"
            )
        rows = range(len(self.tokens), vocab_size)
        self.tokens += _unused_names(rows, self.tokens)
        self.kinds += [TokenKind.UNUSED] * len(rows)


def read_gguf_tokenizer(directory: Path) -> GGUFTokenizer:
    """The tokenizer of a Hugging Face directory.

    Raises:
        UserError: there is none, or llama.cpp would make other tokens of some text.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"model {directory}: has no tokenizer.json")
    # As AutoTokenizer makes it of all files, which may set tokens that this one alone does not.
    tokenizer = load_tokenizer(
        directory if (directory / "tokenizer_config.json").is_file() else path
    )
    described = json.loads(tokenizer.backend_tokenizer.to_str())

    def refuse(reason: str) -> NoReturn:
        raise UserError(
            f"tokenizer {path}: {reason}; expected a byte-level BPE that splits as GPT-2 does (`lpa "
            "prepare` trains one) or as SmolLM does (digits first), without any rule that llama.cpp lacks"
        )

    model, added = described["model"], described["added_tokens"]
    if model.get("type") != "BPE":
        refuse(f"is a {model.get('type')} model")
    splitting = _splitting_rule(described["pre_tokenizer"])
    if splitting is None:
        refuse(f"splits text by {_named(described['pre_tokenizer'])}")
    if normalizer := _steps(described["normalizer"], "normalizers"):
        refuse(f"normalizes text by {_named(normalizer[0])}")
    if _names(described["decoder"], "decoders") != ["ByteLevel"]:
        refuse(f"decodes by {_named(described['decoder'])}")
    for name in _MODEL_SETTINGS:
        if model.get(name):
            refuse(f"has {name} {model[name]!r}")
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - model["vocab"].keys()
    if missing:
        refuse(f"has no token for {len(missing)} of 256 bytes")
    if reason := _unlike_added_token(added):
        refuse(reason)
    bos, eos = _frame(tokenizer.backend_tokenizer, refuse)
    tokens, kinds = _tokens(model["vocab"], added, refuse)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return GGUFTokenizer(splitting, tokens, kinds, merges, bos, eos, tokenizer.chat_template)


def _splitting_rule(rule: dict[str, Any] | None) -> str | None:
    steps = _steps(rule, "pretokenizers")
    name = "gpt-2"
    if len(steps) == 2 and steps[0]["type"] == "Digits" and steps[0]["individual_digits"]:
        name, steps = "smollm", steps[1:]
    if len(steps) != 1 or steps[0]["type"] != "ByteLevel":
        return None
    plain = not steps[0]["add_prefix_space"] and steps[0].get("use_regex", True)
    return name if plain else None


def _steps(rule: dict[str, Any] | None, within: str) -> list[dict[str, Any]]:
    """The steps of a rule of tokenizers, those of sequences within sequences too."""
    if rule is None:
        return []
    if rule["type"] != "Sequence":
        return [rule]
    return [step for inner in rule[within] for step in _steps(inner, within)]


def _names(rule: dict[str, Any] | None, within: str) -> list[str]:
    return [step["type"] for step in _steps(rule, within)]


def _named(rule: dict[str, Any] | None) -> str:
    """A rule in words: its type and what it is given, shortened."""
    if rule is None:
        return "nothing"
    settings = json.dumps({key: value for key, value in rule.items() if key != "type"})
    settings = settings if len(settings) <= 120 else f"{settings[:117]}..."
    return f"{rule['type']} {settings}"


def _unlike_added_token(added: list[dict[str, Any]]) -> str | None:
    """What llama.cpp would do otherwise about added tokens than the tokenizers library."""
    for token in added:
        name = token["content"]
        for setting in ("lstrip", "rstrip", "single_word"):
            if token[setting]:
                return f"its token {name!r} has {setting}"
        if name in _CONTROL_NAMES and not token["special"]:
            return f"its token {name!r}, which llama.cpp takes for a special one, is not special"
        if name in _PLAIN_NAMES and token["special"]:
            return f"its token {name!r}, which llama.cpp takes for a plain one, is special"
    # The library matches the leftmost token, and the longest of those that begin there, in one pass over
    # tokens that are not to be normalized and one over the others. llama.cpp matches the longest anywhere.
    first_pass = {token["content"]: not token["normalized"] for token in added}
    inside: dict[str, list[str]] = {}  # beginnings of tokens, all but the whole
    for name in first_pass:
        for end in range(1, len(name)):
            inside.setdefault(name[:end], []).append(name)
    for name in first_pass:
        for begin in range(1, len(name)):
            for other in inside.get(name[begin:], []):
                if not _one_run(name, other):
                    return f"its tokens {name!r} and {other!r} overlap"
        for begin in range(len(name)):
            for end in range(begin + 1, len(name) + 1):
                part = name[begin:end]
                if part != name and first_pass.get(part, False) and not first_pass[name]:
                    return f"its token {part!r} is matched before {name!r}, which holds it"
    return None


def _one_run(*names: str) -> bool:
    """Whether names are runs of one character, whose longest is also the leftmost."""
    return len(list(groupby("".join(names)))) == 1


def _frame(backend: Any, refuse: Callable[[str], NoReturn]) -> tuple[int | None, int | None]:
    """The token that the post-processor sets before a text, and that after it."""
    around = tokens_around(backend, "a b")
    if around is None:
        refuse("its post-processor changes the tokens of a text")
    before, after = around
    for name, tokens in (("before", before), ("after", after)):
        if len(tokens) > 1:
            refuse(f"its post-processor sets {len(tokens)} tokens {name} a text")
    return next(iter(before), None), next(iter(after), None)


def _tokens(
    vocab: dict[str, int], added: list[dict[str, Any]], refuse: Any
) -> tuple[list[str], list[TokenKind]]:
    names = {number: name for name, number in vocab.items()}
    kinds = dict.fromkeys(names, TokenKind.NORMAL)
    for token in added:
        names[token["id"]] = token["content"]
        kinds[token["id"]] = TokenKind.CONTROL if token["special"] else TokenKind.USER_DEFINED
    if len(set(names.values())) < len(names):
        refuse("has two tokens of the same text")
    gaps = sorted(set(range(max(names))) - names.keys())
    names |= zip(gaps, _unused_names(gaps, names.values()), strict=True)
    kinds |= dict.fromkeys(gaps, TokenKind.UNUSED)
    return [names[i] for i in sorted(names)], [kinds[i] for i in sorted(names)]


def _unused_names(numbers: Iterable[int], taken: Iterable[str]) -> list[str]:
    """Names for rows that no token uses, none of which is taken: llama.cpp needs all to differ."""
    taken, names = set(taken), []
    for number in numbers:
        name = f"[unused{number}]"
        while name in taken:
            name = f"[{name}]"
        names.append(name)
    return names
