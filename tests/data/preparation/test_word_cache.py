"""A text encoded word by word has the ids that the tokenizer gives the whole."""

import unicodedata

import numpy as np
import pytest
from helpers.tokenizer_kinds import tokenizer_kind
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from lpa.data import bundled_corpus, read_documents
from lpa.data.preparation import word_cache as words_module
from lpa.data.preparation.word_cache import WordCacheEncoder, supports_word_cache


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", True),
        ("newer", False),
        ("prefix space", False),
        ("metaspace", False),
        ("lower case", False),
    ],
)
def test_only_the_rule_that_is_known_is_trusted(name, expected):
    assert supports_word_cache(tokenizer_kind(name)) is expected


def whole(texts):
    backend = tokenizer_kind("gpt2")
    return [backend.encode(text, add_special_tokens=False).ids for text in texts]


def test_real_text(monkeypatch):
    texts = list(read_documents([bundled_corpus(split) for split in ("validation", "test")]))
    encoder = WordCacheEncoder(tokenizer_kind("gpt2"), "uint16")
    for _ in range(2):  # words not seen before, then from the table
        for text, (ids, words), expected in zip(
            texts, encoder.encode(texts), whole(texts), strict=True
        ):
            assert ids.dtype == np.uint16
            assert ids.tolist() == expected
            assert words == len(text.split())
    monkeypatch.setattr(words_module, "_MAX_WORDS", 10)  # the table begins anew
    assert encoder.encode(texts[:1])[0][0].tolist() == whole(texts[:1])[0]


SPACES = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000\u200b\ufeff\u180e"


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from("ab'sé.7½—😀中\u0301" + SPACES + " " * 20), max_size=60)
        | st.sampled_from(
            [
                "a<|endoftext|> b",
                "",
                "\0",
                "\0 \0",
                "a\0 \0b",
                "\n",
                "a\nb",
                "\nb",
                "\r\nb",
                " ",
                "  x",
                "it 's it's",
                "x \n y",
            ]
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_text(texts):
    encoder = WordCacheEncoder(tokenizer_kind("gpt2"), "uint16")
    found = encoder.encode(texts)
    assert [ids.tolist() for ids, _ in found] == whole(texts)
    assert [words for _, words in found] == [len(text.split()) for text in texts]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.just(" "), max_size=80))
def test_any_character(text):
    encoder = WordCacheEncoder(tokenizer_kind("gpt2"), "uint16")
    assert encoder.encode([text])[0][0].tolist() == whole([text])[0]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([*"ab'sdtmrevl.7_(!~‘’“”—…‐⁞ \n", "'re", "'ll", " '", "<|endoftext|>"]),
        max_size=30,
    )
)
def test_plain_words_split_into_the_parts_of_the_rule(parts):
    text = "".join(parts)
    encoder = WordCacheEncoder(tokenizer_kind("gpt2"), "uint16")
    assert encoder.encode([text])[0][0].tolist() == whole([text])[0]


def test_marks_that_words_are_split_at_are_neither_letters_nor_digits_nor_spaces():
    for code in (*range(0x2010, 0x2028), *range(0x2030, 0x205F)):
        assert unicodedata.category(chr(code))[0] in "PS"


@pytest.mark.parametrize("content", ["a\nb", "\n", "x\n", "\t", "end of text"])
def test_added_tokens_with_white_space_are_not_left_to_words(content):
    backend = Tokenizer.from_str(tokenizer_kind("gpt2").to_str())
    backend.add_tokens([AddedToken(content)])
    assert not supports_word_cache(backend)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    "before", ["a  ", "a\n\n  ", "\t ", "\u3000 ", "a\n", "a ", "\n \n", ""], ids=repr
)
def test_white_space_before_an_added_token_stays_together(special, before):
    """The tokenizer cuts at such a token before its rule looks at what is left."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "Ġ"), ("Ċ", "Ċ"), ("ĊĊ", "Ġ"), ("ĊĊĠ", "Ġ"), ("Ċ", "Ġ")]
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_tokens([AddedToken("<tool>", special=special, normalized=False)])
    assert supports_word_cache(backend)
    encoder = WordCacheEncoder(backend, "uint16")
    texts = [f"{before}<tool>b", "a  b c", f"x {before}<tool><tool> {before}<tool>", "c"]
    found = encoder.encode(texts)
    assert [ids.tolist() for ids, _ in found] == [backend.encode(text).ids for text in texts]
    assert [words for _, words in found] == [len(text.split()) for text in texts]
