"""Documents out of every kind of file, whole or refused."""

import csv
import gzip
import io
import json
import random
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from reading import read, refusal

from lpa.data import Source, read_documents
from lpa.errors import UserError

TEXT = "one\ntwo\n\nthree é\n"
_CHANCE = random.Random(0)
DOCUMENTS = [
    " ".join(f"{_CHANCE.getrandbits(32):x}" for _ in range(200)) + f' "quoted", ü {n}'
    for n in range(12)
]


def csv_bytes(rows):
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    return file.getvalue().encode()


def parquet_bytes(table):
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=4)
    return file.getvalue()


def arrow_bytes(table, new=pa.ipc.new_stream):
    file = io.BytesIO()
    with new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return file.getvalue()


TABLE = pa.table({"id": list(range(len(DOCUMENTS))), "text": DOCUMENTS})
ROWS = [{"id": n, "text": text} for n, text in enumerate(DOCUMENTS)]
FORMATS = {
    ".txt": "\n".join(DOCUMENTS).encode(),
    ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    ".json": json.dumps(ROWS, indent=1).encode(),
    ".csv": csv_bytes([["id", "text"], *([row["id"], row["text"]] for row in ROWS)]),
}
TABLES = {
    ".parquet": parquet_bytes(TABLE),
    "-stream.arrow": arrow_bytes(TABLE),
    "-file.arrow": arrow_bytes(TABLE, pa.ipc.new_file),
}


def without_size(content):
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return compressor.compress(content) + compressor.flush()


def in_frames(compress):
    """Compressed in three parts, one after another, the middle one empty."""
    return lambda content: compress(content[:999]) + compress(b"") + compress(content[999:])


SKIPPED = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
COMPRESSED = {
    "gzip": (".gz", gzip.compress),
    "gzip members": (".gz", in_frames(gzip.compress)),
    "gzip in upper case": (".GZ", gzip.compress),
    "gzip padded": (".gz", lambda content: gzip.compress(content) + b"\0" * 512),
    "zstandard": (".zst", zstandard.compress),
    "zstandard frames": (".zst", in_frames(zstandard.compress)),
    "zstandard without a size": (".zst", without_size),
    "zstandard with notes": (".zst", lambda content: SKIPPED + zstandard.compress(content)),
}


def expected(ending):
    return ["\n".join(DOCUMENTS)] if ending == ".txt" else DOCUMENTS


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("ending", FORMATS)
def test_every_compression_is_looked_through(tmp_path, ending, kind):
    suffix, compress = COMPRESSED[kind]
    path = tmp_path / f"a{ending}{suffix}"
    path.write_bytes(compress(FORMATS[ending]))
    assert read(path) == expected(ending)


@pytest.mark.parametrize("ending", [*FORMATS, *TABLES])
def test_every_format_gives_its_documents(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes((FORMATS | TABLES)[ending])
    assert read(path) == expected(ending)


@pytest.mark.parametrize("kind", [kind for kind in COMPRESSED if "padded" not in kind])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_truncated_compressed_file_is_refused_wherever_it_ends(tmp_path, ending, kind):
    suffix, compress = COMPRESSED[kind]
    whole = compress(FORMATS[ending])
    # Not between two members or frames, where what is left is a whole file.
    inside = sorted({*range(1, 9), *range(40, len(whole) - 9, len(whole) // 9), len(whole) - 9})
    ends = [len(whole) - n for n in (1, 2, 4, 8)]
    for length in (*inside, *ends):
        path = tmp_path / f"a{ending}{suffix}"
        path.write_bytes(whole[:length])
        assert "cannot be read as" in refusal(path), length


@pytest.mark.parametrize("ending", TABLES)
def test_a_truncated_table_is_refused_wherever_it_ends(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    whole = TABLES[ending]
    for length in {*range(1, len(whole), 97), *(len(whole) - n for n in (1, 4, 8, 16))}:
        path.write_bytes(whole[:length])
        assert "cannot be read as" in refusal(path), length


def test_a_stream_of_arrow_truncated_between_two_batches_is_refused(tmp_path):
    path = tmp_path / "a.arrow"
    whole, first = arrow_bytes(TABLE), arrow_bytes(TABLE.slice(0, 4))
    path.write_bytes(whole[: len(first) - 8])
    assert "no end-of-stream mark" in refusal(path)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", [*FORMATS, ".parquet", ".arrow"])
def test_what_is_not_of_its_format_is_refused(tmp_path, ending, suffix):
    path = tmp_path / f"a{ending}{suffix}"
    path.write_bytes(b"\x93garbage \xff\xfe, neither text nor compressed \0\0")
    refusal(path)
    if suffix:
        compress = gzip.compress if suffix == ".gz" else zstandard.compress
        path.write_bytes(compress(FORMATS.get(ending, b"")) + b"garbage at the end")
        refusal(path)


@pytest.mark.parametrize("ending", TABLES)
def test_a_damaged_table_is_refused_or_read_and_never_ends_the_process(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    chance = random.Random(1)
    for _ in range(60):
        content = bytearray(TABLES[ending])
        for _ in range(3):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        with suppress(UserError):
            read(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_file_is_one_document_unless_said_otherwise(tmp_path, end):
    path = tmp_path / "a.txt"
    text = TEXT.replace("\n", end)
    path.write_bytes(text.encode())
    assert read(path) == [text]  # to the last byte
    assert read(path, boundary="blank") == [f"one{end}two", "three é"]
    assert read(path, boundary="line") == ["one", "two", "three é"]


def test_a_long_file_is_read_whole(tmp_path):
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


# What looks like a number, a date, a gap or a truth value, and is text.
GUESSED = [
    "NA",
    "None",
    "nan",
    "null",
    "1984",
    "007",
    "1e5",
    "2024-01-01",
    "true",
    " x ",
    "N/A",
    "-",
]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", *TABLES])
def test_a_column_is_text_and_nothing_else(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    rows = [{"n": n, "text": text} for n, text in enumerate(GUESSED)]
    table = pa.table({"text": GUESSED})
    path.write_bytes(
        {
            ".jsonl": lambda: "".join(json.dumps(row) + "\n" for row in rows).encode(),
            ".json": lambda: json.dumps(rows).encode(),
            ".csv": lambda: csv_bytes([["n", "text"], *([n, t] for n, t in enumerate(GUESSED))]),
            ".parquet": lambda: parquet_bytes(table),
            "-stream.arrow": lambda: arrow_bytes(table),
            "-file.arrow": lambda: arrow_bytes(table, pa.ipc.new_file),
        }[ending]()
    )
    assert read(path) == GUESSED


def test_rows_far_into_a_file_are_read_as_the_first_ones_are(tmp_path):
    path = tmp_path / "a.jsonl"
    filler = json.dumps({"id": 1, "text": "words " * 1000}) + "\n"
    with open(path, "w") as file:
        for _ in range(2000):  # more than readers look at to guess types
            file.write(filler)
        file.write('{"id": "a string now", "text": "2024-01-01", "one": ["more"]}\n')
    assert read(path)[-1] == "2024-01-01"


@pytest.mark.parametrize("size", [200_000, 3_000_000])
def test_a_text_may_be_long(tmp_path, size):
    text = "x, y\n" * (size // 5)
    (tmp_path / "a.csv").write_bytes(csv_bytes([["text"], [text]]))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    assert read(tmp_path / "a.csv") == read(tmp_path / "a.jsonl") == [text]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".txt", b"ok caf\xe9"),
        (".jsonl", b'{"text": "ok caf\xe9"}\n'),
        (".json", b'[\n{"text": "ok caf\xe9"}]'),
        (".csv", b"text\nok caf\xe9\n"),
    ],
)
def test_bytes_that_are_not_utf_8_are_replaced_where_asked(tmp_path, ending, content, suffix):
    path = tmp_path / f"a{ending}{suffix}"
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path.write_bytes(compress(content))
    assert read(path, errors="replace") == ["ok caf\ufffd"]
    assert "byte 0xe9 is not UTF-8; expected UTF-8, or errors=replace" in refusal(path)


def test_a_lone_surrogate_is_replaced_where_asked(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud800b \\udc00\\ud83d\\ude00"}\n')
    assert read(path, errors="replace") == ["a\ufffdb \ufffd\U0001f600"]


def write_table(path, table):
    path.write_bytes(parquet_bytes(table) if path.suffix == ".parquet" else arrow_bytes(table))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
def test_every_type_of_text_in_a_table_is_text(tmp_path, name, kind):
    texts = ["a", None, "b\0\u2028", "", "a"]
    write_table(tmp_path / name, pa.table({"text": pa.array(texts, pa.string()).cast(kind)}))
    assert read(tmp_path / name) == ["a", "b\0\u2028", "a"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "int64"),
        ([1.5], "double"),
        ([True], "bool"),
        ([b"a"], "binary"),
        ([["a"]], "list<"),
        ([{"text": "a"}], "struct<"),
    ],
)
def test_a_column_of_a_table_that_is_no_text_is_refused(tmp_path, name, values, kind):
    write_table(tmp_path / name, pa.table({"text": values}))
    message = refusal(tmp_path / name)
    assert f"column 'text' holds {kind}" in message
    assert message.endswith("; expected text")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_bytes_of_a_table_that_are_not_utf_8_are_named_by_row_or_replaced(tmp_path, name):
    values = pa.array([b"a", b"b", b"caf\xe9"], pa.binary())
    text = pa.StringArray.from_buffers(3, values.buffers()[1], values.buffers()[2])
    write_table(tmp_path / name, pa.table({"text": text}))
    assert "row 3: byte 0xe9 is not UTF-8; expected UTF-8, or errors=replace" in refusal(
        tmp_path / name
    )
    assert read(tmp_path / name, errors="replace") == ["a", "b", "caf\ufffd"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_the_columns_of_a_table_are_named(tmp_path, name):
    write_table(tmp_path / name, pa.table({"body": ["a"], "a.b": ["b"], "n": [1]}))
    assert "no text in column 'text'; its columns are body, a.b, n" in refusal(tmp_path / name)
    assert read(tmp_path / name, column="a.b") == ["b"]
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    write_table(tmp_path / name, twice)
    refusal(tmp_path / name)


EMPTY = {
    "a.txt": b" \n",
    "b.txt.gz": gzip.compress(b""),
    "c.jsonl": b"\n",
    "d.jsonl.zst": zstandard.compress(b""),
    "e.json": b"[]",
    "f.csv": b"text\n",
    "g.parquet": parquet_bytes(TABLE.slice(0, 0)),
    "h.arrow": arrow_bytes(TABLE.slice(0, 0)),
    "i.parquet": parquet_bytes(pa.table({"text": pa.nulls(2)})),
    "j.jsonl": b'{"text": null}\n',
}


def test_files_without_text_are_left_out(tmp_path):
    for name, content in EMPTY.items():
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == [], name
    (tmp_path / "z.txt").write_text("text")
    assert read(tmp_path) == ["text"]


@pytest.mark.parametrize(
    ("ending", "suffix"),
    [
        *((ending, suffix) for ending in FORMATS for suffix in ("", ".gz", ".zst")),
        *((ending, "") for ending in TABLES),
    ],
)
def test_what_is_read_is_reported_while_it_is_read(tmp_path, ending, suffix):
    from lpa.data.sources.documents import read_fragments
    from lpa.data.sources.listing import list_files

    path = tmp_path / f"a{ending}{suffix}"
    chance = random.Random(2)
    texts = [f"{chance.getrandbits(60_000):x}" for _ in range(600)]
    table = pa.table({"text": texts})
    content = {
        ".txt": lambda: "\n".join(texts).encode(),
        ".jsonl": lambda: "".join(json.dumps({"text": text}) + "\n" for text in texts).encode(),
        ".json": lambda: json.dumps([{"text": text} for text in texts]).encode(),
        ".csv": lambda: csv_bytes([["text"], *([text] for text in texts)]),
        ".parquet": lambda: parquet_bytes(table),
        "-stream.arrow": lambda: arrow_bytes(table),
        "-file.arrow": lambda: arrow_bytes(table, pa.ipc.new_file),
    }[ending]()
    compress = {"": bytes, ".gz": lambda c: gzip.compress(c, 1), ".zst": zstandard.compress}[suffix]
    path.write_bytes(compress(content))
    done, places = 0, []

    def advance(size):
        nonlocal done
        done += size

    for _ in read_fragments(list_files(Source(str(path), boundary="line")), advance):
        places.append(done)
    assert done == path.stat().st_size
    if ending != ".json":  # which is read whole
        assert places[len(places) // 2] < 0.8 * done


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", b"a\ncaf\xe9", "latin.txt: cannot be read as text: line 2: byte 0xe9"),
        ("bad.jsonl", b"{not json}\n", "bad.jsonl: cannot be read as json: line 1"),
        ("bad.parquet", b"not parquet", "bad.parquet: cannot be read as parquet"),
        ("bad.arrow", b"not arrow", "bad.arrow: cannot be read as arrow"),
        ("bad.txt.gz", b"not gzip", "bad.txt.gz: cannot be read as text"),
        ("bad.txt.zst", b"not zstandard", "bad.txt.zst: cannot be read as text"),
        ("other.jsonl", b'{"body": "x"}\n', "no text in column 'text'; its columns are body"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    assert message in refusal(path)
