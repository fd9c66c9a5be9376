"""The tokenizer of a model, which has no token that text becomes and the model lacks."""

import warnings
from pathlib import Path
from typing import Any

from lpa.data.document_limits import default_bos_token
from lpa.data.text_encoder import unknown_token_id
from lpa.data.tokenizer import check_vocabulary, load_tokenizer
from lpa.errors import LPAWarning


def load_model_tokenizer(directory: Path, config: Any) -> Any:
    """The tokenizer of a model's directory, as `load_tokenizer`.

    Args:
        config: the model's.

    Raises:
        UserError: it cannot be loaded, or as `check_model_tokenizer`.
    """
    tokenizer = load_tokenizer(directory)
    check_model_tokenizer(tokenizer, config, f"model {directory}: its tokenizer")
    return tokenizer


def check_model_tokenizer(tokenizer: Any, config: Any, whose: str) -> None:
    """Refuse a tokenizer that makes tokens of text, or puts them around it, that its model has not.

    Warns of special tokens that the model has not, such as those of images: `TextEncoder` makes none of
    text.

    Args:
        tokenizer: as `load_tokenizer` gives it.
        config: the model's.
        whose: what errors call it.

    Raises:
        UserError: naming both sizes.
    """
    backend = tokenizer.backend_tokenizer
    vocabulary = backend.get_vocab(with_added_tokens=True)
    # A single character is text in any case.
    unused = {
        number
        for number, token in backend.get_added_tokens_decoder().items()
        if token.special and len(token.content) > 1
    }
    unused -= {tokenizer.eos_token_id, default_bos_token(tokenizer), unknown_token_id(backend)}
    used = (number for number in vocabulary.values() if number not in unused)
    check_vocabulary(1 + max(used, default=0), config, whose)
    rows = config.get_text_config().vocab_size
    missing = sorted(token for token, number in vocabulary.items() if number >= rows)
    if missing:
        warnings.warn(
            f"{whose} has {len(missing)} special tokens from id {rows} on ({', '.join(missing[:3])}), which "
            "the model has not; text does not become them, and a prompt with one is refused",
            LPAWarning,
            stacklevel=3,
        )
