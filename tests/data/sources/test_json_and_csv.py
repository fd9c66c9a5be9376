"""Rows of JSON and CSV, as written or named by their line."""

import pytest
from reading import read, refusal


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b'{"text": "a"}\n{"text": "b"}', ["a", "b"]),
        (b'\xef\xbb\xbf{"text": "a"}\n', ["a"]),
        (b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n', ["a", "b"]),
        (b'{"text": "a"}\r{"text": "b"}\r', ["a", "b"]),
        (b'{"text": "a\\r\\nb\\u0000c"}\n', ["a\r\nb\0c"]),
        (b'{"text": "\\ud83d\\ude00\\u00e9"}\n', ["\U0001f600é"]),
        ('{"text": "a\u2028b\x85c"}\n'.encode(), ["a\u2028b\x85c"]),
        (b'{"text": null}\n{"text": ""}\n{"text": " "}\n{"text": "a"}\n', ["a"]),
        (b'{"text": "a", "n": ' + b"9" * 9999 + b"}\n", ["a"]),
        (b'{"text": "a", "of": {"text": 1, "kind": "text"}}\n', ["a"]),
        (b'[{"text": "a"}, {"text": "b"}]', ["a", "b"]),
        (b'[\n {"text": "a"},\n {"text": null}\n]\n', ["a"]),
        (b'{\n "text": "a"\n}\n', ["a"]),
        (b'{"text":\n"a"}', ["a"]),
    ],
)
def test_json_gives_its_texts(tmp_path, content, documents):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert read(path) == documents


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"null", "line 1: is null; expected an object"),
        (b"null\n" * 3, "line 1: is null; expected an object"),
        (b"7\n", "line 1: is a number; expected an object"),
        (b'"a"\n"b"\n', "line 1: is a string; expected an object"),
        (b"[1]\n", "row 1: is a number; expected an object"),
        (b"[]\n[]\n", "line 2: Extra data"),
        (b'[{"text": "a"},\n{"text": 1}]\n', "row 2: column 'text' is a number; expected text"),
        (b'[{"text": "a"},\n{"text" "b"}]\n', "line 2: Expecting ':' delimiter at column 9"),
        (b"{}\n", "line 1: no text in column 'text'; it has no columns"),
        (
            b'{"text": "a"}\n{"body": "b"}\n',
            "line 2: no text in column 'text'; its columns are body",
        ),
        (b'{"text": "a"}\n\n{"text": 5}\n', "line 3: column 'text' is a number; expected text"),
        (b'{"text": "a"}\r{"text": true}\r', "line 2: column 'text' is true or false"),
        (b'{"text": ["a"]}\n', "line 1: column 'text' is an array; expected text"),
        (b'{"text": {"text": "a"}}\n', "line 1: column 'text' is an object; expected text"),
        (b'{"text": "a", "text": "b"}\n', "line 1: an object has 'text' twice"),
        (b'{"text": "a"}\n{"text": oops}\n', "line 2: Expecting value at column 10"),
        (b'{"text": "a"}\n{"text": "b"} x\n', "line 2: Extra data"),
        (b'{"text": "a"}\n{"text": "a\tb"}\n', "line 2: Invalid control character"),
        (b'{"text": "a"}\n{"text": "b', "line 2: Unterminated string"),
        (b'{"text": "a"}\n\0\0\0\0', "line 2: Expecting value"),
        (b'{"text": "a"}\n{"x": ' + b"[" * 100_000 + b"\n", "line 2: is nested too deeply"),
        (b"[" * 100_000, "from line 1 on: is nested too deeply"),
        (
            b'{"text": "a"}\n{"text": "a\\ud800b"}\n',
            "line 2: column 'text' has a lone surrogate \\ud800",
        ),
        (b'{"text": "a"}\n{"text": "caf\xe9"}\n', "line 2: byte 0xe9 is not UTF-8"),
        (b'{"text": "a"}\r{"text": "caf\xe9"}\r', "line 2: byte 0xe9 is not UTF-8"),
        (b'\xff\xfe{\0"\0t\0', "line 1: byte 0xff is not UTF-8"),
    ],
)
def test_a_row_of_json_that_is_no_text_is_named_by_its_line(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert message in refusal(path)


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b"text\na\nb", ["a", "b"]),
        (b"\xef\xbb\xbftext,n\na,1\n", ["a"]),
        (b"text,n\r\na,1\r\n\r\nb,2\r\n", ["a", "b"]),
        (b"text,n\ra,1\rb,2\r", ["a", "b"]),
        (b'n,text\n1,"a\nb"\n2,"c\r\nd"\n3,"e\rf"\n', ["a\nb", "c\r\nd", "e\rf"]),
        (
            b'text\n"Hello, world"\n"say ""hi"""\nit is 5" long\n',
            ["Hello, world", 'say "hi"', 'it is 5" long'],
        ),
        (b"\n\ntext\na\n", ["a"]),
        (b"text,n\n,1\n  ,2\na,3\n", ["a"]),
        (b"text\na\0b\n", ["a\0b"]),
        (b"n,n,text\n1,2,a\n", ["a"]),
        (b"text;n\n", None),
    ],
)
def test_csv_gives_its_cells_as_written(tmp_path, content, documents):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    if documents is None:
        assert "no text in column 'text'; its columns are text;n" in refusal(path)
    else:
        assert read(path) == documents


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a first text\nanother one\n", "no text in column 'text'; its columns are a first text"),
        (b"text,text\na,b\n", "has 2 columns 'text'; expected one"),
        (b"text\nHello, world\n", "line 2: has 2 fields where the header has 1"),
        (b"n,text\n1,a\n\n2\n", "line 4: has 1 fields where the header has 2"),
        (b'n,text\n1,"a\nb"\n2,"never\nending\n', "line 4: unexpected end of data"),
        (b'n,text\n1,"a" b\n', "line 2: ',' expected after '\"'"),
        (b"n,text\n1,a\n2,caf\xe9\n", "line 3: byte 0xe9 is not UTF-8"),
    ],
)
def test_a_row_of_csv_that_is_damaged_is_named_by_its_line(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert message in refusal(path)
