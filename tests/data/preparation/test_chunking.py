"""Documents in chunks encode to the ids of whole ones, whatever the tokenizer does with spaces."""

import pytest
from helpers.tokenizer_kinds import tokenizer_kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpa.data import bundled_corpus, load_tokenizer, read_documents
from lpa.data.preparation import chunking as chunking_module
from lpa.data.preparation.chunking import Chunker
from lpa.data.sources.documents import Fragment
from lpa.data.text_encoder import TextEncoder


def ids(backend, chunks):
    return [i for chunk in chunks for i in backend.encode(chunk, add_special_tokens=False).ids]


def chunk(backend, text, size=10_000):
    fragments = [
        (0, Fragment(text[i : i + size], is_last=False)) for i in range(0, len(text), size)
    ]
    fragments.append((0, Fragment("", is_last=True)))
    result = list(Chunker(TextEncoder(backend, None)).chunk(fragments))
    assert [chunk.is_last for _, chunk in result] == [False] * (len(result) - 1) + [True]
    return [chunk.text for _, chunk in result]


@pytest.mark.parametrize("name", ["gpt2", "newer", "lower case"])
def test_chunks_of_real_text_are_small_and_encode_as_the_whole(name):
    backend = tokenizer_kind(name)
    text = "\n\n".join(read_documents([bundled_corpus("test")]))
    for whole in (
        text,
        text.replace("\n\n", "\n"),
        text.replace("\n", "\r\n"),
        text.replace("\n", " "),
    ):
        parts = chunk(backend, whole)
        assert "".join(parts) == whole
        assert max(map(len, parts)) < 6 * chunking_module.CHUNK_CHARACTERS
        assert ids(backend, parts) == backend.encode(whole, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["prefix space", "metaspace"])
def test_a_tokenizer_that_marks_beginnings_gets_whole_documents(
    name,
):
    backend = tokenizer_kind(name)
    text = "\n\n".join(read_documents([bundled_corpus("test")]))
    parts = chunk(backend, text)
    assert "".join(parts) == text
    assert ids(backend, parts) == backend.encode(text, add_special_tokens=False).ids


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    text=st.text(st.sampled_from("ab '.\n\n\r\t\u30007é—😀"), max_size=400),
    name=st.sampled_from(["gpt2", "newer"]),
)
def test_any_text_encodes_as_the_whole(text, name):
    backend = tokenizer_kind(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking_module, "CHUNK_CHARACTERS", 16)
        patch.setattr(chunking_module, "_PROBE_CHARACTERS", 8)
        parts = chunk(backend, text, size=50)
    assert "".join(parts) == text
    assert ids(backend, parts) == backend.encode(text, add_special_tokens=False).ids


def test_the_tokenizer_of_a_prepared_directory_is_chunked_for(prepared):
    backend = load_tokenizer(prepared / "tokenizer").backend_tokenizer
    text = next(read_documents([bundled_corpus("train")]))
    assert len(chunk(backend, text)) > 3


@pytest.mark.parametrize("name", ["gpt2", "newer"])
@pytest.mark.parametrize(
    "stretch", ["A" * 100_000, "中" * 100_000, "\n" * 100_000], ids=["word", "Chinese", "line ends"]
)
def test_a_stretch_without_a_boundary_is_one_chunk_and_the_rest_is_not(name, stretch):
    lines = "These are lines\nof ordinary text.\n" * 4000
    parts = chunk(tokenizer_kind(name), f"{lines}{stretch}{lines}")
    assert "".join(parts) == f"{lines}{stretch}{lines}"
    sizes = sorted(map(len, parts))
    assert sizes[-1] < len(stretch) + 3 * chunking_module.CHUNK_CHARACTERS
    assert sizes[-2] < 2 * chunking_module.CHUNK_CHARACTERS


@pytest.mark.parametrize("name", ["gpt2", "newer"])
@pytest.mark.parametrize("between", ["\n\n", "\r\n\r\n", "\n\u3000\u3000", "\u3000"])
def test_text_without_spaces_is_split_at_other_white_space(name, between):
    text = between.join(["中文沒有空格。" * 20] * 400)
    backend = tokenizer_kind(name)
    parts = chunk(backend, text)
    assert "".join(parts) == text
    assert max(map(len, parts)) < 3 * chunking_module.CHUNK_CHARACTERS
    assert ids(backend, parts) == backend.encode(text, add_special_tokens=False).ids
