import pytest

from lpa.errors import UserError
from lpa.files import new_directory, write_text


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_directory_appears_once_it_is_complete(tmp_path):
    out = tmp_path / "out"
    with new_directory(out) as directory:
        (directory / "a").write_text("a")
        assert not out.exists()
    assert [p.name for p in out.iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def write_and_fail(out):
    with new_directory(out, overwrite=True) as directory:
        (directory / "b").write_text("b")
        raise RuntimeError


def test_a_failure_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    with new_directory(out) as directory:
        (directory / "a").write_text("a")
    with pytest.raises(RuntimeError):
        write_and_fail(out)
    assert [p.name for p in out.iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_exists_is_replaced_only_when_asked(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with new_directory(out) as directory:  # an empty one holds nothing to lose
        (directory / "a").write_text("a")
    with pytest.raises(UserError, match="already exists"), new_directory(out):
        pass
    with new_directory(out, overwrite=True) as directory:
        (directory / "b").write_text("b")
    assert [p.name for p in out.iterdir()] == ["b"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("file")
    with pytest.raises(UserError, match="is a file"), new_directory(tmp_path / "out"):
        pass
