import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpa.data import bundled_corpus, read_documents
from lpa.errors import UserError

TEXT = "one\ntwo\n\nthree é\n"


def test_a_text_file_is_one_document_unless_said_otherwise(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    assert list(read_documents([path])) == [TEXT]
    blank = list(read_documents([path], boundary="blank"))
    assert [document.strip() for document in blank] == ["one\ntwo", "three é"]
    assert list(read_documents([path], boundary="line")) == ["one", "two", "three é"]


def test_gzip_is_looked_through(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    assert list(read_documents([path])) == [TEXT]


def test_json_lines_and_parquet_give_their_column_in_order(tmp_path):
    texts = ["a", "b\nc", "   ", "d"]
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"body": text, "n": 1}) + "\n" for text in texts))
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": texts}), table)
    kept = ["a", "b\nc", "d"]
    assert list(read_documents([lines, table], column="body")) == kept + kept


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "gone.txt: no such file"),
        ("empty.txt", b"", "empty.txt: is empty; expected text"),
        ("a.docx", b"x", "a.docx: unknown ending; expected one of .txt, .jsonl"),
        ("latin.txt", b"caf\xe9", "latin.txt: cannot be read as text"),
        ("bad.jsonl", b"{not json}\n", "bad.jsonl: cannot be read as json"),
        ("bad.parquet", b"not parquet", "bad.parquet: cannot be read as parquet"),
        ("bad.txt.gz", b"not gzip", "bad.txt.gz: cannot be read as text"),
        ("other.jsonl", b'{"body": "x"}\n', "no text in column 'text'; its columns are body"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_documents([path]))
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
