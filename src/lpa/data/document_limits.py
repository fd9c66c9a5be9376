"""What stands before and after a text: the tokens that a tokenizer sets there, and those of documents."""

from typing import Any

from lpa.data.text_encoder import TextEncoder


def tokens_around(backend: Any, text: str) -> tuple[list[int], list[int]] | None:
    """What the post-processor sets before and after a text; None where it changes the tokens of the text."""
    plain, framed = (backend.encode(text, add_special_tokens=added).ids for added in (False, True))
    for start in range(len(framed)):
        end = start + len(plain)
        if framed[start:end] == plain:
            return framed[:start], framed[end:]
    return None


def begin_with_bos(tokenizer: Any) -> None:
    """Let a tokenizer put its beginning-of-sequence token, which it has, before each text."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.bos_token} $A",
        special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)],
    )


def default_bos_token(tokenizer: Any) -> int | None:
    """The token that a tokenizer puts before a text unasked, whatever it calls it; None without one.

    Several tokens, as some tokenizers set them, begin no document here.
    """
    try:
        around = tokens_around(tokenizer.backend_tokenizer, "a")
    except Exception:  # bare in the library: no unknown token for this letter
        return None
    before = around[0] if around else []
    return before[0] if len(before) == 1 else None


def document_bos_token(tokenizer: Any) -> int | None:
    """What each of many documents begins with: `default_bos_token`, unless it is what ends them."""
    bos = default_bos_token(tokenizer)
    return None if bos == tokenizer.eos_token_id else bos


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a text to continue, which begins as a document does; there is at least one.

    Text that spells a special token is that token.
    """
    ids = TextEncoder.of(tokenizer, parse_special_tokens=True).encode(prompt)
    bos = default_bos_token(tokenizer)
    if bos is not None and ids[:1] != [bos]:
        return [bos, *ids]
    return ids or [tokenizer.eos_token_id]  # after the end of the document before
