import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lpa.data import Source, bundled_corpus, read_documents
from lpa.errors import UserError

TEXT = "one\ntwo\n\nthree é\n"


def read(path, **options):
    return list(read_documents([Source(str(path), **options)]))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_file_is_one_document_unless_said_otherwise(tmp_path, end):
    path = tmp_path / "a.txt"
    text = TEXT.replace("\n", end)
    path.write_bytes(text.encode())
    assert read(path) == [text]  # to the last byte
    assert read(path, boundary="blank") == [f"one{end}two", "three é"]
    assert read(path, boundary="line") == ["one", "two", "three é"]


def test_a_long_file_comes_back_whole(tmp_path):
    path = tmp_path / "a.txt"
    text = "".join(f"line {n} ü\n" for n in range(300_000))
    path.write_text(text)
    assert read(path) == [text]


@pytest.mark.parametrize("blank", ["before", "after"])
def test_a_megabyte_of_white_space_neither_joins_files_nor_makes_a_document(tmp_path, blank):
    space, text = " " * (2**20 + 5), "words " * 10
    first = space + text if blank == "before" else text + space
    (tmp_path / "a.txt").write_text(first)
    (tmp_path / "b.txt").write_text(space)
    (tmp_path / "c.txt").write_text("another")
    assert list(read_documents([tmp_path])) == [first, "another"]


def test_zstandard_is_looked_through(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(TEXT.encode()))
    assert read(path) == [TEXT]


def test_directories_and_globs_mean_their_files_in_order(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "notes.pdf").write_text("not text")
    assert read(tmp_path) == ["a.txt", "b.txt", "deep/c.txt"]
    assert read(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert read(tmp_path / "**" / "c.*") == ["deep/c.txt"]


def test_a_source_says_its_own_options(tmp_path):
    path = tmp_path / "a#1.txt"
    path.write_text("x")
    assert Source.parse(path).place == str(path)
    source = Source.parse("a.jsonl#column=body,weight=0.5", column="text", errors="replace")
    assert source == Source("a.jsonl", column="body", weight=0.5, errors="replace")
    for text, message in (
        ("a.txt#colour=red", "unknown key 'colour'; expected boundary"),
        ("a.txt#weight=much", "weight 'much' is not a number"),
        ("a.txt#weight=0", "weight: got 0.0; expected a number above 0"),
        ("a.txt#boundary=page", "boundary: got 'page'; expected one of file, blank, line"),
    ):
        with pytest.raises(UserError) as error:
            Source.parse(text)
        assert message in str(error.value)


def test_bytes_that_are_no_utf_8_are_replaced_where_asked(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 au lait")
    assert read(path, errors="replace") == ["caf\ufffd au lait"]


def test_a_malformed_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' * 5 + '{"text": oops}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be read as json: line 6: "):
        read(path)


def test_gzip_is_looked_through(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    assert list(read_documents([path])) == [TEXT]


def test_tables_give_their_column_in_order(tmp_path):
    texts = ["a", "b\nc", "   ", "d"]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"body": text, "n": 1}) + "\n" for text in texts)
    )
    table = pa.table({"body": texts})
    pq.write_table(table, tmp_path / "a.parquet")
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["body"], *([text] for text in texts)])
    for name in ("a.jsonl", "a.parquet", "a.arrow", "a.csv"):
        assert read(tmp_path / name, column="body") == ["a", "b\nc", "d"], name


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
