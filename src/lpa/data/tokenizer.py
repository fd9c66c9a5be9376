"""Tokenizers: train a byte-level BPE, or load an existing one."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lpa.data.sentencepiece import load_sentencepiece
from lpa.errors import UserError

END_OF_TEXT = "<|endoftext|>"
_BYTES = 256

_BACKEND_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_PLAIN_SETTINGS = {
    "backend",
    "clean_up_tokenization_spaces",
    "eos_token",
    "model_max_length",
    "pad_token",
    "tokenizer_class",
}


def train_tokenizer(documents: Iterator[str], vocab_size: int) -> Any:
    """A byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2) as a transformers tokenizer.

    Args:
        documents: texts to learn merges from.
        vocab_size: tokens in all, counting 256 bytes and the end-of-text token.

    Raises:
        UserError: `vocab_size` leaves no room for the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size <= _BYTES:
        raise UserError(
            f"vocab_size: got {vocab_size}; expected at least {_BYTES + 1}: "
            f"every byte and {END_OF_TEXT}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str | Path) -> Any:
    """A transformers tokenizer from a directory, a `tokenizer.json`, a SentencePiece `.model`, or the hub.

    Of a directory, `tokenizer.model` is read where it holds no `tokenizer.json`.

    Raises:
        UserError: there is none, or it has no end-of-text token to end documents with.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = Path(path)
    if place.is_dir() and not (place / _BACKEND_FILE).exists():
        place = place / "tokenizer.model"
    try:
        if place.suffix == ".model" and place.is_file():
            tokenizer = load_sentencepiece(place)
        elif Path(path).is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
            if END_OF_TEXT in tokenizer.get_vocab():
                tokenizer.eos_token = tokenizer.pad_token = END_OF_TEXT
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except UserError:
        raise
    # Of what lies at `path` anything may be wrong; the tokenizers library raises bare exceptions.
    except Exception as error:
        raise UserError(
            f"tokenizer {path}: cannot be loaded; expected a directory written by save_pretrained, "
            "a tokenizer.json, a SentencePiece .model, or a model name of the Hugging Face hub"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {path}: has no end-of-text token (eos_token)")
    return tokenizer


class PlainTokenizer:
    """A tokenizer that its files describe whole, opened without transformers, whose import takes seconds.

    It has what `lpa prepare` asks of a tokenizer; `plain_tokenizer` says where it stands in for one.
    """

    def __init__(self, directory: Path, eos_token: str) -> None:
        from tokenizers import Tokenizer

        self._directory = directory
        self.backend_tokenizer = Tokenizer.from_file(str(directory / _BACKEND_FILE))
        self.eos_token_id = self.backend_tokenizer.token_to_id(eos_token)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def save_pretrained(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        for name in (_BACKEND_FILE, _CONFIG_FILE):
            shutil.copyfile(self._directory / name, directory / name)


def plain_tokenizer(path: str | Path) -> PlainTokenizer | None:
    """The tokenizer of a directory if transformers would add nothing to its `tokenizer.json`, else None.

    So it is with the generic class and settings that leave the encoding alone, as `lpa prepare` writes.
    """
    directory = Path(path)
    if {_BACKEND_FILE, _CONFIG_FILE} != {file.name for file in directory.glob("*")}:
        return None
    try:
        config = json.loads((directory / _CONFIG_FILE).read_text(encoding="utf-8"))
        plain = config["tokenizer_class"] in _PLAIN_CLASSES and config.keys() <= _PLAIN_SETTINGS
        tokenizer = PlainTokenizer(directory, config["eos_token"]) if plain else None
    # What is damaged is for `load_tokenizer` to name.
    except Exception:
        return None
    return tokenizer if tokenizer is not None and tokenizer.eos_token_id is not None else None


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what a fast tokenizer does: its tokenizer.json without padding and truncation."""
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()
