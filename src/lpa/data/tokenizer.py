"""Tokenizers: train a byte-level BPE, or load an existing one."""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lpa.data.document_limits import document_bos_token
from lpa.data.manifest import TOKENIZER_DIRECTORY, Manifest
from lpa.data.sentencepiece import apply_settings, load_sentencepiece
from lpa.data.text_encoder import disable_truncation_and_dropout
from lpa.errors import LPAWarning, UserError, expected_one_of

END_OF_TEXT = "<|endoftext|>"
# Name -> its special tokens, and how a conversation is written with them (Jinja, as transformers reads it).
CHAT_TEMPLATES: dict[str, tuple[tuple[str, ...], str]] = {
    "chatml": (
        ("<|im_start|>", "<|im_end|>"),
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    )
}
_NUM_BYTES = 256
# How much of a word the trainer sees at once: its work grows with the square of the length of words.
# No word of ordinary text is as long; DNA, Chinese on one line and runs of spaces are.
_MAX_WORD_LENGTH = 512

_BACKEND_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
# What transformers makes a tokenizer from. Without any it makes one up.
_TOKENIZER_FILE = re.compile(
    r"tokenizer\.json|tekken\.json|merges\.txt|vocab\..*|.*\.(model|tiktoken|spm|bpe|vocab)"
)
_EXPECTED = (
    "expected a directory written by save_pretrained, a tokenizer.json, a SentencePiece .model, or a model "
    "name of the Hugging Face hub"
)
_FAST_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_FAST_SETTINGS = {
    "backend",
    "clean_up_tokenization_spaces",
    "eos_token",
    "model_max_length",
    "pad_token",
    "tokenizer_class",
}


def train_tokenizer(
    documents: Iterator[str], vocab_size: int, chat_template: str | None = None
) -> Any:
    """A byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2) as a transformers tokenizer.

    Words of more than 512 characters are learned from in parts of 512.

    Args:
        documents: texts to learn merges from.
        vocab_size: tokens in all, counting 256 bytes and the special tokens.
        chat_template: a name of `CHAT_TEMPLATES`, whose special tokens and template it gets.

    Raises:
        UserError: `vocab_size` leaves no room for the bytes, or there is no such template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    chat_tokens, template = _chat_template(chat_template)
    special = [END_OF_TEXT, *chat_tokens]
    if vocab_size < _NUM_BYTES + len(special):
        raise UserError(
            f"--vocab-size: got {vocab_size}; expected at least {_NUM_BYTES + len(special)}: "
            f"every byte and {', '.join(special)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # A separate object: while it trains, the tokenizer is locked.
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = (part for text in documents for part in split_long_words(text, words))
    tokenizer.train_from_iterator(texts, trainer)
    trained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    trained.chat_template = template
    return trained


def _chat_template(name: str | None) -> tuple[tuple[str, ...], str | None]:
    if name is None:
        return (), None
    if name not in CHAT_TEMPLATES:
        raise UserError(f"--chat-template: got {name!r}; {expected_one_of(name, CHAT_TEMPLATES)}")
    return CHAT_TEMPLATES[name]


def copy_tokenizer(source: Path, directory: Path, max_length: int) -> None:
    """Copy the files of a tokenizer to those of a model of so many positions.

    `model_max_length`, at which transformers and TRL truncate, becomes the positions where it is more or
    is not given.
    """
    shutil.copytree(source, directory, dirs_exist_ok=True)
    file = directory / _CONFIG_FILE
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        known = config.get("model_max_length")
        if not isinstance(known, int | float) or known > max_length:
            text = json.dumps(
                config | {"model_max_length": max_length}, indent=2, ensure_ascii=False
            )
            file.write_text(text + "\n", encoding="utf-8")


def split_long_words(text: str, words: Any) -> Iterator[str]:
    """A text in parts, which differ in nothing for training but that long words are split.

    Args:
        words: the rule that splits text into words.
    """
    start = 0
    if _may_have_long_word(text):
        for _, (begin, end) in words.pre_tokenize_str(text):
            for place in range(begin + _MAX_WORD_LENGTH, end, _MAX_WORD_LENGTH):
                yield text[start:place]
                start = place
    yield text[start:]


def _may_have_long_word(text: str) -> bool:
    """Whether there may be a long word: one covers some stretch of half its length from end to end."""
    half = _MAX_WORD_LENGTH // 2
    stretches = (text[start : start + half] for start in range(0, len(text) - half + 1, half))
    return any(stretch.isspace() or len(stretch.split(None, 1)[0]) == half for stretch in stretches)


def load_tokenizer(path: str | Path) -> Any:
    """A transformers tokenizer from a directory, a `tokenizer.json`, a SentencePiece `.model`, or the hub.

    Of a directory, `tokenizer.model` is read where it holds no `tokenizer.json`, with the added tokens, the
    special ones and the chat template that the files beside it name. Truncation, padding and
    dropout that its files carry are switched off. `TextEncoder` encodes documents with it.

    Raises:
        UserError: there is none, it needs code that comes with it, or it has no end-of-text token to end
            documents with.
    """
    tokenizer = _load(path)
    check_encodes_documents(tokenizer, f"tokenizer {path}")
    return tokenizer


def check_encodes_documents(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that `TextEncoder` cannot take, or without a token to end documents with.

    Args:
        name: what errors call it.

    Raises:
        UserError: naming it.
    """
    _check_backend(tokenizer, name)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: has no end-of-text token (eos_token)")


def _check_backend(tokenizer: Any, name: str) -> None:
    from tokenizers import Tokenizer

    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise UserError(
            f"{name}: is a {type(tokenizer).__name__}, which the tokenizers library does not run"
        )


def verify_tokenizer(data: Path, manifest: Manifest) -> None:
    """Compare the tokenizer of a prepared data directory with the manifest; the hub is never asked.

    Warns where the tokenizer puts a token before a text and the documents, of an earlier version, lack it.

    Raises:
        UserError: it is missing, cannot be loaded, or is not the one that the data were prepared with.
    """
    directory = data / TOKENIZER_DIRECTORY
    if not (directory / _BACKEND_FILE).is_file():
        raise UserError(
            f"{directory}: has no {_BACKEND_FILE}; expected the tokenizer that `lpa prepare` wrote there; "
            "prepare the data again"
        )
    tokenizer = load_fast_tokenizer(directory) or load_tokenizer(directory)
    found, expected = tokenizer_hash(tokenizer), manifest.tokenizer_sha256
    if found != expected:
        raise UserError(
            f"{directory}: SHA-256 of the tokenizer is {found[:12]}…; expected {expected[:12]}…, that of the "
            "manifest: the tokenizer was replaced or damaged; prepare the data again"
        )
    if tokenizer.eos_token_id != manifest.eos_token_id:
        raise UserError(
            f"{directory / _CONFIG_FILE}: the end-of-text token is {tokenizer.eos_token_id}; expected "
            f"{manifest.eos_token_id}, that of the manifest; prepare the data again"
        )
    bos = document_bos_token(tokenizer)
    if bos is not None and manifest.bos_token_id is None:
        warnings.warn(
            f"data {data}: no document begins with token {bos}, which its tokenizer puts before a text, so "
            "models do not learn it; prepare the data again",
            LPAWarning,
            stacklevel=2,
        )


def load_data_tokenizer(data: Path, manifest: Manifest) -> Any:
    """The tokenizer of a prepared data directory, as `load_tokenizer`.

    Raises:
        UserError: as `verify_tokenizer`.
    """
    verify_tokenizer(data, manifest)
    return load_tokenizer(data / TOKENIZER_DIRECTORY)


def check_vocabulary(size: int, config: Any, whose: str) -> None:
    """Refuse tokens that a model has not.

    Args:
        size: their highest id + 1.
        config: the model's.
        whose: what errors call that which has them.

    Raises:
        UserError: naming both sizes.
    """
    rows = config.get_text_config().vocab_size
    if size > rows:
        raise UserError(
            f"{whose} has tokens up to id {size - 1}; expected at most {rows - 1}, as the model has a "
            f"vocabulary of {rows}"
        )


def _load(path: str | Path) -> Any:
    """Load a tokenizer as `load_tokenizer` does, with or without an end-of-text token."""
    from transformers import PreTrainedTokenizerFast

    location = Path(path)
    if location.is_dir():
        if not has_tokenizer(location):
            raise UserError(f"tokenizer {path}: the directory has no {_BACKEND_FILE}; {_EXPECTED}")
        if not (location / _BACKEND_FILE).exists():
            location = location / "tokenizer.model"
    try:
        if location.suffix == ".model" and location.is_file():
            tokenizer = load_sentencepiece(location)
            if Path(path).is_dir():
                apply_settings(tokenizer, Path(path))
        elif Path(path).is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
            if END_OF_TEXT in tokenizer.get_vocab():
                tokenizer.eos_token = tokenizer.pad_token = END_OF_TEXT
        else:
            tokenizer = from_pretrained(str(path))
    except UserError:
        raise
    # Of what lies at `path` anything may be wrong; the tokenizers library raises bare exceptions.
    except Exception as error:
        raise UserError(
            f"tokenizer {path}: cannot be loaded ({_reason(error)}); {_EXPECTED}"
        ) from error
    return _settled(tokenizer, path)


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds a file that transformers makes a tokenizer from."""
    return any(_TOKENIZER_FILE.fullmatch(file.name) for file in directory.iterdir())


def from_pretrained(pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
    """`AutoTokenizer.from_pretrained` without running code that comes with a tokenizer, or asking to.

    Truncation, padding and dropout are switched off.
    """
    from transformers import AutoTokenizer

    location = pretrained_model_name_or_path
    return _settled(
        AutoTokenizer.from_pretrained(location, trust_remote_code=False, **options), location
    )


def as_generic(tokenizer: Any) -> Any:
    """A tokenizer in the generic class; others of transformers build their parts anew when loaded."""
    from transformers import PreTrainedTokenizerFast

    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    generic = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        clean_up_tokenization_spaces=False,
        **{role: getattr(tokenizer, role) for role in roles},
    )
    generic.chat_template = tokenizer.chat_template
    return generic


def _settled(tokenizer: Any, path: str | Path) -> Any:
    _check_backend(tokenizer, f"tokenizer {path}")
    disable_truncation_and_dropout(tokenizer.backend_tokenizer)
    try:  # transformers looks at many a setting only when it is used
        tokenizer.decode(tokenizer("a")["input_ids"])
    except Exception as error:
        raise UserError(
            f"tokenizer {path}: its settings cannot be used ({_reason(error)}); expected those that "
            f"save_pretrained writes to {_CONFIG_FILE}"
        ) from error
    return tokenizer


def _reason(error: Exception) -> str:
    """The first line of what a library says; transformers would tell how to run code from the hub."""
    if "trust_remote_code" in str(error):
        return "it needs Python code that comes with it, which is never run"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def open_backend(path: Path) -> Any:
    """The tokenizer of a `tokenizer.json`, by the `tokenizers` library alone.

    Raises:
        UserError: it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:
        raise UserError(f"tokenizer {path}: cannot be loaded ({_reason(error)})") from error
    disable_truncation_and_dropout(backend)
    return backend


def vocabulary_size(tokenizer: Any) -> int:
    """The highest token id + 1, which is more than the number of tokens where ids leave gaps."""
    return 1 + max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values())


def load_vocabulary(directory: Path) -> dict[str, int] | None:
    """The tokens of a directory's tokenizer and their ids; None where it has no tokenizer.

    Raises:
        UserError: it has one that cannot be loaded.
    """
    if not directory.is_dir() or not has_tokenizer(directory):
        return None
    tokenizer = load_fast_tokenizer(directory) or _load(directory)
    found: dict[str, int] = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    return found


class FastTokenizer:
    """A tokenizer that its files describe whole, opened without transformers, whose import takes seconds.

    It has what `lpa prepare` asks of a tokenizer; `load_fast_tokenizer` says where it replaces one.
    """

    def __init__(self, directory: Path, eos_token: str) -> None:
        self._directory = directory
        self.backend_tokenizer = open_backend(directory / _BACKEND_FILE)
        self.eos_token_id = self.backend_tokenizer.token_to_id(eos_token)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def save_pretrained(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.backend_tokenizer.save(str(directory / _BACKEND_FILE))
        shutil.copyfile(self._directory / _CONFIG_FILE, directory / _CONFIG_FILE)


def load_fast_tokenizer(path: str | Path) -> FastTokenizer | None:
    """The tokenizer of a directory if transformers would add nothing to its `tokenizer.json`, else None.

    So it is with the generic class and settings that leave the encoding alone, as `lpa prepare` writes.
    """
    directory = Path(path)
    if {_BACKEND_FILE, _CONFIG_FILE} != {file.name for file in directory.glob("*")}:
        return None
    try:
        config = json.loads((directory / _CONFIG_FILE).read_text(encoding="utf-8"))
        is_fast = config["tokenizer_class"] in _FAST_CLASSES and config.keys() <= _FAST_SETTINGS
        tokenizer = FastTokenizer(directory, config["eos_token"]) if is_fast else None
    # What is damaged is for `load_tokenizer` to name.
    except Exception:
        return None
    return tokenizer if tokenizer is not None and tokenizer.eos_token_id is not None else None


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what a fast tokenizer does: its tokenizer.json without truncation, padding and dropout."""
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    disable_truncation_and_dropout(backend)
    return hashlib.sha256(backend.to_str().encode()).hexdigest()
