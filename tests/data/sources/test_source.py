import gzip
import json

import pytest

from lpa.data import Source, bundled_corpus, read_documents
from lpa.errors import UserError


def test_a_source_says_its_own_options(tmp_path):
    path = tmp_path / "a#1.txt"
    path.write_text("x")
    assert Source.parse(path).path == str(path)
    source = Source.parse("a.jsonl#column=body,weight=0.5", column="text", errors="replace")
    assert source == Source("a.jsonl", column="body", weight=0.5, errors="replace")


@pytest.mark.parametrize(
    ("text", "place", "column"),
    [
        ("a.txt", "a.txt", "text"),
        ("a.txt#column=b", "a.txt", "b"),
        ("a.txt#column=b#c", "a.txt", "b#c"),
        ("a#1.txt#column=b", "a#1.txt", "b"),
        ("a#1/*.txt#column=b", "a#1/*.txt", "b"),
        ("a#1/*.txt", "a#1/*.txt", "text"),
        ("hf:some/name#column=b", "hf:some/name", "b"),
        ("column=a#column=b", "column=a", "b"),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_where_a_location_ends(tmp_path, monkeypatch, text, place, column, exists):
    monkeypatch.chdir(tmp_path)
    if exists and not place.startswith("hf:"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    source = Source.parse(text)
    assert (source.path, source.column) == (place, column)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.txt#color=red", "unknown key 'color'; expected boundary"),
        ("a.txt#weight=much", "weight 'much' is not a number"),
        ("a.txt#weight=0", "weight: got 0.0; expected a number above 0"),
        ("a.txt#weight=inf", "weight: got inf; expected a number above 0"),
        ("a.txt#boundary=page", "boundary: got 'page'; expected one of file, blank, line"),
        ("a.txt#errors=ignore", "errors: got 'ignore'; expected one of strict, replace"),
        ("real.txt#weight", "weight '' is not a number"),
        ("real.txt#2", "unknown key '2'"),
    ],
)
def test_an_option_that_is_not_accepted_is_named(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real.txt").touch()
    with pytest.raises(UserError) as error:
        Source.parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize(("split", "speeches"), [("train", 33), ("validation", 2), ("test", 3)])
def test_the_bundled_corpus_is_whole_speeches_without_stage_directions(split, speeches):
    documents = list(read_documents([bundled_corpus(split)]))
    assert len(documents) == speeches
    text = "\n".join(documents).lower()
    for trace in ("[", "]", "laughter.", "audience member", "(applause)", "white house correction"):
        assert trace not in text, trace


def test_no_speech_is_in_two_splits():
    ids = [
        json.loads(line)["id"]
        for split in ("train", "validation", "test")
        for line in gzip.decompress(bundled_corpus(split).read_bytes()).decode().splitlines()
    ]
    assert len(ids) == len(set(ids)) == 38
