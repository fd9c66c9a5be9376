"""Which files a source means, and what is left out of them."""

import gzip
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpa.data import Manifest, Source, prepare, read_documents
from lpa.data.sources.listing import list_files
from lpa.errors import LPAWarning, UserError


def names(place, **options):
    listed = list_files(Source(str(place)), **options)
    return [str(file) for file in listed.files], {
        reason: of["count"] for reason, of in listed.left_out.describe().items()
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content_of(name, text):
    """A file of the format that its name says, with one document."""
    formats = {
        ".jsonl": lambda: json.dumps({"text": text}).encode() + b"\n",
        ".csv": lambda: f"text\n{text}\n".encode(),
        ".parquet": lambda: table_bytes(text, pq.write_table),
        ".arrow": lambda: table_bytes(text, write_stream),
    }
    formats[".json"] = formats[".jsonl"]
    name = name.lower()
    content = formats.get(Path(name.removesuffix(".gz")).suffix, text.encode)()
    return gzip.compress(content) if name.endswith(".gz") else content


def table_bytes(text, write):
    file = io.BytesIO()
    write(pa.table({"text": [text]}), file)
    return file.getvalue()


def write_stream(table, file):
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def write(*paths, text="text"):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(path.name, text))


ODD_NAMES = [
    "a[1]",
    "a*",
    "a?",
    "[!b]",
    "a::b",
    "zip:%%a",
    "hf:a",
    "file:a",
    "a#1",
    "a#weight=2",
    "a,b",
    "{a,b}",
    "a b ",
    "ü\u0301 本",
    "~",
    "$HOME",
    "-a",
    "a\nb",
    "a\udcff",
    "a'\"\\",
    "%20",
]
ENDINGS = [".txt", ".jsonl", ".json.gz", ".csv", ".parquet", ".arrow"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_path_that_exists_is_that_path(here, name, ending):
    # What patterns and other notations would find in its place.
    write(*(f"{other}{ending}" for other in ("a1", "ab", "a", "b", "ax")), text="another")
    write(f"{name}{ending}", text="this")
    os.mkdir(name)
    write(f"{name}/in{ending}", text="inside")
    for place in (f"{name}{ending}", here / f"{name}{ending}", f"./{name}{ending}"):
        assert list(read_documents([Source.parse(place)])) == ["this"]
    assert list(read_documents([Source.parse(name)])) == ["inside"]
    with_options = Source.parse(f"{name}{ending}#weight=3")
    assert (with_options.path, with_options.weight) == (f"{name}{ending}", 3.0)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("[ab].txt", ["a.txt", "b.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("**/c.*", ["deep/c.txt", "deep/er/c.txt"]),
        ("**", ["a.txt", "b.txt", "deep/c.txt", "deep/er/c.txt"]),
        ("deep/**/*.txt", ["deep/c.txt", "deep/er/c.txt"]),
        ("*/**/c.txt", ["deep/c.txt", "deep/er/c.txt"]),
        ("**/er/**/*.txt", ["deep/er/c.txt"]),
        ("d*", ["deep/c.txt", "deep/er/c.txt"]),
        (".h*/*", [".hidden/d.txt"]),
    ],
)
def test_what_does_not_exist_is_a_pattern(here, pattern, expected):
    write("a.txt", "b.txt", "deep/c.txt", "deep/er/c.txt", ".hidden/d.txt")
    assert names(pattern)[0] == expected
    assert names(here / pattern)[0] == [str(here / name) for name in expected]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gone.txt", "gone.txt: no such file"),
        ("gone*.txt", "gone*.txt: no such file"),
        ("gone#1.txt", "gone#1.txt: no such file"),
        ("empty.txt", "empty.txt: is empty; expected text"),
        ("a.docx", "a.docx: unknown ending; expected one of .txt, .jsonl"),
        ("a", "a: unknown ending"),
        ("a.parquet.gz", "a.parquet.gz: unknown ending"),
        ("a.txt.gz.gz", "a.txt.gz.gz: unknown ending"),
        ("pipe.txt", "pipe.txt: is not a file"),
        ("loop.txt", "loop.txt: is a broken link: Too many levels of symbolic links"),
        ("dangling.txt", "dangling.txt: is a broken link: No such file or directory"),
        ("a.txt/b.txt", "a.txt/b.txt: no such file"),
        ("folder", "folder: holds no file that ends in .txt, .jsonl"),
        (
            "folder",
            "left out: 1 broken links (no.txt), 1 empty files (e.txt), 2 files with another",
        ),
        ("a\0b", "no such file"),
        ("n" * 300, "no such file"),
    ],
)
def test_a_location_that_cannot_be_a_source_is_named(here, place, message):
    write("a.docx", "a", "a.parquet.gz", "a.txt.gz.gz", "a.txt", "folder/n.pdf", "folder/m.PDF")
    Path("empty.txt").touch()
    Path("folder/e.txt").touch()
    os.mkfifo("pipe.txt")
    os.symlink("loop.txt", "loop.txt")
    os.symlink("gone", "dangling.txt")
    os.symlink("gone", "folder/no.txt")
    with pytest.raises(UserError) as error:
        list(read_documents([Source.parse(place)]))
    assert message in str(error.value)


def test_a_directory_means_its_files_and_says_what_it_leaves_out(here):
    write("in/b.txt", "in/a.TXT", "in/deep/c.JSONL.GZ", "in/deep/d.Csv")
    write("in/notes.pdf", "in/README", "in/.a.txt", "in/.git/b.txt", "in/deep/.cache/c.txt")
    Path("in/zero.txt").touch()
    os.mkfifo("in/pipe.txt")
    os.symlink("gone", "in/dangling.txt")
    for place in ("in", "i*", "in/**", "./in/"):
        found, left_out = names(place)
        assert [os.path.relpath(file, "in") for file in found] == [
            *("a.TXT", "b.txt", "deep/c.JSONL.GZ", "deep/d.Csv"),
        ]
        # What a pattern itself does not match is not counted: `*` matches no hidden name.
        hidden = {"hidden directories", "hidden files"}
        if "**" not in place:
            assert {reason: left_out.get(reason) for reason in hidden} == {
                "hidden directories": 2,
                "hidden files": 1,
            }
        assert {reason: n for reason, n in left_out.items() if reason not in hidden} == {
            "broken links": 1,
            "empty files": 1,
            "files with another ending": 2,
            "special files": 1,
        }


def test_links_are_followed_and_each_file_is_read_once(here):
    write("in/a.txt", "in/deep/b.txt", "elsewhere/c.txt", "elsewhere/more/d.txt")
    os.symlink("../elsewhere", "in/away")
    os.symlink("../elsewhere/more", "in/more")
    os.symlink("a.txt", "in/0.txt")
    os.symlink("deep", "in/0")
    os.symlink(".", "in/loop")
    os.symlink("..", "in/deep/up")
    os.symlink(here / "in", "elsewhere/back")
    expected = ["in/a.txt", "in/away/c.txt", "in/away/more/d.txt", "in/deep/b.txt"]
    for place in ("in", "in/**/*.txt", "in/**", "in/*"):
        found, left_out = names(place)
        assert sorted(os.path.realpath(file) for file in found) == sorted(
            os.path.realpath(file) for file in expected
        ), place
        assert left_out["links to files that are read"] >= 1
    assert names("in")[0] == expected


def test_many_loops_of_links_end(here):
    write("in/a.txt")
    for n in range(6):
        os.mkdir(f"in/{n}")
        for m in range(6):
            os.symlink("..", f"in/{n}/{m}")
    for place in ("in", "**/*.txt", "**/**/a.txt"):
        assert names(place)[0] == ["in/a.txt"]


def make_run(folder):
    write(f"{folder}/metrics.jsonl", f"{folder}/final/tokenizer.json")
    Path(folder, "config.yaml").write_text("train: {}\n")


def test_outputs_of_this_package_are_never_sources(here):
    write("text/a.txt", "text/b/c.txt", text="words and more words " * 50)
    prepare(["text"], Path("text/data"), vocab_size=257, validation_fraction=0)
    make_run("text/run")
    make_run("text/b/killed")
    os.remove("text/b/killed/metrics.jsonl")
    os.mkdir("text/b/killed/checkpoints")
    write("text/.data2.partial/d.txt")
    write("text/b/manifest.json", text="of something else")
    expected = ["text/a.txt", "text/b/c.txt", "text/b/manifest.json"]
    for place in ("text", "te*", "text/*", "text/**"):
        found, left_out = names(place)
        assert found == expected, place
        assert left_out["prepared data directories"] == 1
        assert left_out["run directories"] == 2
    for place, kind in (("text/data", "prepared data"), ("text/run", "run")):
        with pytest.raises(UserError, match=f"{place}: is a {kind} directory; expected text"):
            names(place)


def test_the_output_is_never_a_source(here):
    write("a.txt", "out/b.txt", "out/deep/c.txt")
    os.symlink("out", "other")
    for place in (".", "*", "**/*.txt", here):
        found, left_out = names(place, output=Path("out"))
        assert [Path(file).name for file in found] == ["a.txt"]
        assert left_out["output directories"] >= 1
    for place in ("out/b.txt", "other/b.txt", "out", "out/deep", "other"):
        with pytest.raises(UserError, match="--out out"):
            names(place, output=Path("out"))


def test_a_data_set_of_the_hub_is_not_taken_for_what_lies_here(here):
    write("wikitext/a.txt")
    with pytest.raises(UserError, match="hf:wikitext: wikitext exists here and would be read"):
        list(read_documents([Source.parse("hf:wikitext")]))


def test_reading_without_preparing_warns_of_what_is_left_out(here):
    write("in/a.txt", "in/b.pdf", "in/c.pdf", "in/.d.txt")
    with pytest.warns(LPAWarning) as warned:
        assert list(read_documents([Path("in")])) == ["text"]
    [warning] = warned
    assert str(warning.message) == (
        "in: left out: 2 files with another ending (b.pdf, …), 1 hidden files (.d.txt)"
    )


def test_names_that_are_not_utf_8_are_escaped_in_the_manifest(here):
    write("in/a\udcff.txt", "in/b\udcff.pdf", text="words and more words " * 50)
    prepare(["in"], Path("data"), vocab_size=257, validation_fraction=0.1)
    [source] = Manifest.load(Path("data")).source["sources"]["train"]
    assert source["files"] == [["a\\udcff.txt", 1050]]
    assert source["left_out"] == {
        "files with another ending": {"count": 1, "first": "b\\udcff.pdf"}
    }
    with pytest.raises(UserError, match=r"column: got 'a\\udcff', which is not UTF-8"):
        Source.parse("in#column=a\udcff")


def test_files_of_held_out_text_are_no_training_text(here):
    write("in/a.txt", "in/b.txt", "in/deep/valid.txt", text="words and more words " * 50)
    options = {"vocab_size": 257, "validation": ["in/deep"], "test": ["in/b.txt"]}
    for number, place in enumerate(("in", "in/**/*.txt")):
        manifest = prepare([place], Path(f"data-{number}"), **options)
        [source] = manifest.source["sources"]["train"]
        assert [name for name, _ in source["files"]] == ["a.txt"]
        assert source["left_out"]["files of another split"]["count"] == 2
    with pytest.warns(LPAWarning, match=r"in/b\.txt: is text of two splits at once"):
        manifest = prepare(["in/a.txt", "in/b.txt"], Path("named"), **options)
    assert manifest.splits["train"].documents == 2


def files_by_source(split, *sources):
    """What is read of each source of a split, and how many of its files are left to another source."""
    write("other.txt")
    options = {"vocab_size": 257, "validation_fraction": None if split == "validation" else 0}
    given = {"train": ["other.txt"], split: sources}
    manifest = prepare(given.pop("train"), Path("data"), overwrite=True, **given, **options)
    return [
        (
            [name for name, _ in source["files"]],
            source["left_out"].get("files of another source", {"count": 0})["count"],
        )
        for source in manifest.source["sources"][split]
    ]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_file_is_read_by_one_source_of_a_split(here, split):
    write("in/a.txt", "in/b.txt", "in/deep/c.txt", "in/deep/d.txt")
    os.symlink("in/a.txt", "link.txt")
    assert files_by_source(split, "in", "in/a.txt#weight=2") == [
        (["b.txt", "c.txt", "d.txt"], 1),
        (["a.txt"], 0),
    ]
    assert files_by_source(split, "link.txt", "in/*.txt") == [(["link.txt"], 0), (["b.txt"], 1)]
    assert files_by_source(split, "in/deep#weight=2", here / "in") == [
        (["c.txt", "d.txt"], 0),
        (["a.txt", "b.txt"], 2),
    ]
    for sources, message in (
        (["in", "in/deep"], "in/deep: holds no file .*; left out: 2 files of another source"),
        (
            ["in/a.txt", "./in/a.txt#weight=2"],
            rf"\./in/a\.txt: is named twice for {split}; expected",
        ),
        (["link.txt", "in/a.txt"], rf"in/a\.txt: is named twice for {split}; expected once"),
    ):
        with pytest.raises(UserError, match=message):
            files_by_source(split, *sources)


def test_several_columns_of_a_file_are_several_texts(here):
    os.mkdir("in")
    rows = "".join(json.dumps({"question": f"why {n}?", "answer": f"{n}"}) + "\n" for n in range(9))
    Path("in/a.jsonl").write_text(rows)
    for place in ("in", "in/*.jsonl", "in/a.jsonl"):
        sources = [f"{place}#column=question", f"{place}#column=answer"]
        assert files_by_source("train", *sources) == [(["a.jsonl"], 0), (["a.jsonl"], 0)]


def test_a_data_set_of_the_hub_that_is_named_twice_is_refused(here):
    names = ["hf:some/name#split=test", "hf:some/name#split=test,weight=2"]
    with pytest.raises(UserError, match="hf:some/name: is named twice for train; expected once"):
        prepare(names, Path("data"), vocab_size=257)


def test_hub_names_are_no_files_unless_they_are(here):
    assert Source.parse("hf:some/name#split=test").on_hub
    write("hf:some/name.txt")
    assert not Source.parse("hf:some/name.txt").on_hub


def test_a_file_of_the_test_is_no_validation_text(here):
    write("in/a.txt", "held/test.txt", "held/valid.txt", text="words and more words " * 50)
    splits = {}
    for number, (validation, test) in enumerate(
        [("held", "held/test.txt"), ("held/*.txt", "held/test.txt"), ("held/valid.txt", "held")]
    ):
        manifest = prepare(
            ["in"], Path(f"data-{number}"), vocab_size=257, validation=[validation], test=[test]
        )
        splits[number] = [
            [name for name, _ in manifest.source["sources"][split][0]["files"]]
            for split in ("validation", "test")
        ]
    assert splits == {number: [["valid.txt"], ["test.txt"]] for number in range(3)}
    with pytest.raises(UserError, match=r"held: holds no file .*2 files of another split"):
        prepare(["in"], Path("data"), vocab_size=257, validation=["held"], test=["held"])
    named = {"validation": ["held/test.txt"], "test": ["held/test.txt"]}
    with pytest.warns(LPAWarning, match=r"held/test\.txt: is text of two splits at once") as caught:
        prepare(["in"], Path("data"), vocab_size=257, **named)
    assert len(caught) == 1


def test_what_datasets_writes_beside_its_tables_is_no_text(here):
    """Its metadata, and what `map` keeps for a later call."""
    import datasets

    saved = datasets.Dataset.from_dict({"text": ["one", "two"]})
    saved.save_to_disk("in/one")
    datasets.DatasetDict(train=saved, test=saved).save_to_disk("in/two")
    datasets.load_from_disk("in/one").map(lambda row: {"text": row["text"] + "!"})
    table = "in/one/data-00000-of-00001.arrow"
    for place in ("in/one", "in/one/*", "in/**/one/*.*"):
        assert names(place) == ([table], {"metadata and cache of datasets": 3})
    assert names("in/two")[0] == [table.replace("one", name) for name in ("two/test", "two/train")]
    # Elsewhere these are names as any other.
    metadata = ["dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"]
    write("tables/cache-1.arrow", *(f"text/deep/{name}" for name in metadata))
    assert names("tables") == (["tables/cache-1.arrow"], {})
    assert names("text") == ([f"text/deep/{name}" for name in metadata], {})
    assert names("in/one/state.json")[0] == ["in/one/state.json"]


@pytest.mark.parametrize("kind", ["run", "prepared"])
def test_what_lies_above_a_pattern_does_not_matter(here, kind):
    if kind == "run":
        write("config.yaml", "checkpoints/x.txt")
    else:
        Path("manifest.json").write_text('{"tokenizer_sha256": ""}')
    write("texts/a.txt", "texts/run/b.txt", "texts/run/config.yaml", "texts/run/metrics.jsonl")
    for pattern in ("texts/*.txt", "texts/**/*.txt", str(here / "texts" / "*.txt")):
        found, left_out = names(pattern)
        assert [Path(name).name for name in found] == ["a.txt"]
        assert left_out == ({"run directories": 1} if "**" in pattern else {})
    # What the pattern itself begins at does, as it would if it were named.
    with pytest.raises(UserError, match=r"left out: 1 (run|prepared data) directories"):
        list_files(Source("*/*.txt"))


def test_unfinished_work_of_the_same_output_is_not_counted(here):
    write("in/a.txt", "in/.hidden/b.txt", "in/.data.partial/jobs/c.txt")
    _, left_out = names("in", output=Path("in/data"))
    assert left_out == {"hidden directories": 1}
    _, left_out = names("in", output=Path("other"))
    assert left_out == {"hidden directories": 2}
