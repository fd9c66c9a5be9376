"""Text is encoded whole, the same every time, and is text even where it spells a special token."""

import json
from functools import cache

import pytest
from helpers.tokenizer_kinds import tokenizer_kind
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lpa.data.preparation.word_cache import WordCacheEncoder
from lpa.data.text_encoder import TextEncoder, decode_continuation
from lpa.errors import UserError

END = "<|endoftext|>"
SPLITTING = ["gpt2", "newer", "prefix space", "metaspace", "lower case"]
SPELLING = [END, f"a{END}b", f"one {END} two\n{END}", END * 3, f"{END[:-1]}", "no such thing"]


def library(backend, text, *, parse):
    """What the library itself says, asked to keep special tokens as text or not."""
    copy = Tokenizer.from_str(backend.to_str())
    copy.encode_special_tokens = not parse
    return copy.encode(text, add_special_tokens=False).ids


def letters(model_of, *, special=True):
    """A tokenizer of single characters, whose model knows the end-of-text token by name."""
    tokens = ["<unk>", "</s>", *"abc </s>x"]
    backend = Tokenizer(model_of(list(dict.fromkeys(tokens))))
    if special:
        backend.add_special_tokens(["</s>"])
    return backend


def unigram(tokens):
    return models.Unigram([(token, -1.0 * (len(token) == 1)) for token in tokens], unk_id=0)


def by_number(tokens):
    return {token: number for number, token in enumerate(tokens)}


def word_level(tokens):
    return models.WordLevel(by_number(tokens), unk_token="<unk>")


def merged(tokens):
    """A BPE whose merges lead to the end-of-text token."""
    vocabulary = by_number([*tokens, "</", "s>"])
    return models.BPE(vocabulary, [("<", "/"), ("s", ">"), ("</", "s>")], unk_token="<unk>")


def whole_words(tokens):
    """A BPE that takes words of its vocabulary as they are, as that of Llama 3."""
    return models.BPE(by_number(tokens), [], unk_token="<unk>", ignore_merges=True)


MODELS = {
    "unigram": unigram,
    "words": word_level,
    "merges": merged,
    "whole words": whole_words,
    "word pieces": lambda tokens: models.WordPiece(
        by_number([*tokens, *(f"##{token}" for token in tokens)]), unk_token="<unk>"
    ),
}


@pytest.mark.parametrize("kind", SPLITTING)
@pytest.mark.parametrize("parse", [False, True])
@pytest.mark.parametrize("text", SPELLING)
def test_ids_are_those_of_the_library(kind, parse, text):
    backend = tokenizer_kind(kind)
    encoder = TextEncoder(backend, 0, parse_special_tokens=parse)
    ids = encoder.encode(text)
    assert ids == library(backend, text, parse=parse)
    assert (0 in ids) is (parse and END in text)
    assert encoder.count_special(text) == text.count(END)
    if not parse and kind in ("gpt2", "newer"):
        assert backend.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("special", [True, False])
def test_no_model_finds_the_end_of_text_in_text(kind, special):
    backend = letters(MODELS[kind], special=special)
    if kind == "words":
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoder = TextEncoder(backend, 1)
    for text in ("</s>", "a</s>b", "a </s> b", "</s></s>"):
        assert 1 not in encoder.encode(text)
        assert encoder.count_special(text) == text.count("</s>")
        if special:
            assert 1 in TextEncoder(backend, 1, parse_special_tokens=True).encode(text)
    # What does not spell it has the ids that it always had.
    for text in ("abc", "a b", "s>/<", "b </ s>"):
        assert encoder.encode(text) == backend.encode(text).ids
    if kind in ("unigram", "merges", "whole words"):
        backend.decoder = decoders.Fuse()
        assert backend.decode(encoder.encode("a</s>b")) == "a</s>b"


def test_added_tokens_that_are_not_special_stay_the_vocabulary_of_the_tokenizer():
    backend = Tokenizer.from_str(tokenizer_kind("gpt2").to_str())
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("\n\n", special=False)])
    text = f"a<think>b\n\nc{END}"
    assert TextEncoder(backend, 0).encode(text) == library(backend, text, parse=False)
    assert backend.token_to_id("<think>") in TextEncoder(backend, 0).encode(text)


def test_an_end_of_text_token_that_is_not_marked_special_is_special_all_the_same():
    backend = Tokenizer.from_str(tokenizer_kind("gpt2").to_str())
    backend.add_tokens([AddedToken("<eot>", special=False)])
    end = backend.token_to_id("<eot>")
    encoder = TextEncoder(backend, end)
    assert end not in encoder.encode("a<eot>b")
    assert encoder.count_special("a<eot>b<eot>") == 2
    assert end in TextEncoder(backend, end, parse_special_tokens=True).encode("a<eot>b")


def test_a_single_character_is_text_in_any_case():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "\n": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    encoder = TextEncoder(tokenizer, 1)
    assert encoder.encode("a\na") == [0, 1, 0]
    assert encoder.count_special("a\na") == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (
            "truncation",
            {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        ),
        (
            "padding",
            {
                "strategy": {"Fixed": 50},
                "direction": "Left",
                "pad_to_multiple_of": 8,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": END,
            },
        ),
        ("dropout", 0.9),
    ],
)
def test_what_a_tokenizer_carries_changes_no_id(field, value):
    plain = tokenizer_kind("gpt2")
    state = json.loads(plain.to_str())
    (state["model"] if field == "dropout" else state)[field] = value
    text = "My fellow Americans, the state of our union is strong."
    backend = Tokenizer.from_str(json.dumps(state))
    assert backend.encode(text).ids != plain.encode(text).ids
    encoder = TextEncoder(backend, 0)
    for _ in range(3):
        assert encoder.encode(text) == plain.encode(text).ids
    assert backend.to_str() == Tokenizer.from_str(json.dumps(state)).to_str()


def test_text_that_a_tokenizer_cannot_encode_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert TextEncoder(tokenizer, 1).encode("a a") == [0, 0]
    with pytest.raises(UserError, match="tokenizer: cannot encode the text"):
        TextEncoder(tokenizer, 1).encode("a b")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([END, "<think>", "<|", "|>", "a", " ", "\n", "  ", ".", "end", "of", "7"]),
        max_size=20,
    ),
    st.booleans(),
)
def test_word_by_word_as_the_library_whatever_is_added(parts, parse):
    text = "".join(parts)
    reference, encoder = with_added_token(parse)
    ids = WordCacheEncoder(encoder.backend, "uint16").encode([text])[0][0].tolist()
    assert ids == reference.encode(text, add_special_tokens=False).ids


@cache
def with_added_token(parse):
    backend = Tokenizer.from_str(tokenizer_kind("gpt2").to_str())
    backend.add_tokens([AddedToken("<think>", special=False)])
    encoder = TextEncoder(backend, 0, parse_special_tokens=parse)
    backend.encode_special_tokens = not parse
    return backend, encoder


@pytest.mark.parametrize("kind", ["unigram", "words", "merges", "word pieces"])
def test_the_unknown_token_may_stand_for_its_own_name(kind):
    backend = letters(MODELS[kind])
    backend.add_special_tokens(["<unk>"])
    ids = TextEncoder(backend, 1).encode("<unk>")
    assert set(ids) <= set(range(backend.get_vocab_size())) - {1}
    assert TextEncoder(backend, 1).count_special("<unk> </s>") == 2


def test_a_continuation_keeps_the_space_before_it():
    """SentencePiece writes it into the token after it, and drops it in front of a text."""
    backend = Tokenizer(models.WordLevel({"<s>": 0, "▁My": 1, "▁fellow": 2, "s": 3}, "<s>"))
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert decode_continuation(tokenizer, [0, 1], [2, 3]) == " fellows"
    assert decode_continuation(tokenizer, [1, 2], [3]) == "s"
    assert decode_continuation(tokenizer, [0], [1, 2, 0]) == "My fellow"
