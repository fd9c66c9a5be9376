"""Tokenizers that split text in different ways, trained on a little real text."""

from functools import cache
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lpa.data import bundled_corpus, read_documents

# As newer models do it: words with what stands before them, digits by threes, line ends with what
# stands before them.
NEWER_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def tokenizer_kind(name: str) -> Tokenizer:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    newer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(NEWER_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    splitting, normalizer = {
        "gpt2": (level, None),
        "newer": (newer, None),
        "prefix space": (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        "metaspace": (pre_tokenizers.Metaspace(prepend_scheme="always"), None),
        "lower case": (level, normalizers.Lowercase()),
    }[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitting
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_documents([bundled_corpus("test")]), trainer)
    return tokenizer


def word_tokenizer(*texts: str, eos_token: str | None = "<end>") -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: `<unk>` is 0, `<end>` 1, and the words of the texts follow."""
    words = ["<unk>", "<end>", *" ".join(texts).split()]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token=eos_token
    )


def save_with_bos(source: Path, directory: Path, bos: str = "<s>") -> int:
    """A copy of a tokenizer that puts a token before each text, as Llama's does; the token's id."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"bos_token": bos})
    number: int = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, number)]
    )
    tokenizer.save_pretrained(directory)
    return number
