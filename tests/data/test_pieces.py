"""Cut documents encode to the ids of whole ones, whatever the tokenizer does with spaces."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import tokenizer_kind

from lpa.data import bundled_corpus, load_tokenizer, read_documents
from lpa.data import pieces as pieces_module
from lpa.data.pieces import Cutter
from lpa.data.readers import Fragment
from lpa.data.text_encoder import TextEncoder


def ids(backend, pieces):
    return [i for piece in pieces for i in backend.encode(piece, add_special_tokens=False).ids]


def cut(backend, text, size=10_000):
    fragments = [(0, Fragment(text[i : i + size], last=False)) for i in range(0, len(text), size)]
    fragments.append((0, Fragment("", last=True)))
    result = list(Cutter(TextEncoder(backend, None)).cut(fragments))
    assert [piece.last for _, piece in result] == [False] * (len(result) - 1) + [True]
    return [piece.text for _, piece in result]


@pytest.mark.parametrize("name", ["gpt2", "newer", "lower case"])
def test_pieces_of_real_text_are_small_and_encode_as_the_whole(name):
    backend = tokenizer_kind(name)
    text = "\n\n".join(read_documents([bundled_corpus("test")]))
    for whole in (
        text,
        text.replace("\n\n", "\n"),
        text.replace("\n", "\r\n"),
        text.replace("\n", " "),
    ):
        parts = cut(backend, whole)
        assert "".join(parts) == whole
        assert max(map(len, parts)) < 6 * pieces_module.TARGET
        assert ids(backend, parts) == backend.encode(whole, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["prefix space", "metaspace"])
def test_a_tokenizer_that_marks_beginnings_gets_documents_whole_where_cuts_would_show(
    name,
):
    backend = tokenizer_kind(name)
    text = "\n\n".join(read_documents([bundled_corpus("test")]))
    parts = cut(backend, text)
    assert "".join(parts) == text
    assert ids(backend, parts) == backend.encode(text, add_special_tokens=False).ids


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    text=st.text(st.sampled_from("ab '.\n\r\t7é—😀"), max_size=400),
    name=st.sampled_from(["gpt2", "newer"]),
)
def test_any_text_encodes_as_the_whole(text, name):
    backend = tokenizer_kind(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "TARGET", 16)
        patch.setattr(pieces_module, "_CONTEXT", 8)
        parts = cut(backend, text, size=50)
    assert "".join(parts) == text
    assert ids(backend, parts) == backend.encode(text, add_special_tokens=False).ids


def test_the_tokenizer_of_a_prepared_directory_cuts(prepared):
    backend = load_tokenizer(prepared / "tokenizer").backend_tokenizer
    text = next(read_documents([bundled_corpus("train")]))
    assert len(cut(backend, text)) > 3
