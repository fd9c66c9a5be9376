"""A document is cut into splits."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lpa.data.preparation.document_ends import Bound, cut_document, divide_documents
from lpa.data.sources.documents import Fragment


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.sampled_from("ab \n\r天"), min_size=1, max_size=60).filter(str.strip),
    size=st.integers(1, 20),
    fractions=st.sampled_from([(0.1, 0.0), (0.3, 0.2), (0.5, 0.4)]),
)
def test_a_document_is_cut_alike_however_it_is_read(text, size, fractions):
    [parts] = divide_documents(
        [len(text.rstrip())], dict(zip(("validation", "test"), fractions, strict=True))
    )
    bounds = [Bound(0, "train")]
    for split, start, length in (
        ("validation", parts.train, parts.validation),
        ("test", parts.train + parts.validation, parts.test),
    ):
        if length:
            bounds.append(Bound(start, split, parts.shift))

    def cut(size):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        fragments = [Fragment(piece, is_last=False) for piece in pieces[:-1]]
        found = {}
        open_split = None
        for split, fragment in cut_document([*fragments, Fragment(pieces[-1], True)], bounds):
            assert open_split in (None, split)
            open_split = None if fragment.is_last else split
            found[split] = found.get(split, "") + fragment.text
        assert open_split is None
        return found

    whole = cut(len(text))
    assert "".join(whole.values()) == text
    assert all(part.strip() for part in whole.values())
    assert cut(size) == whole
