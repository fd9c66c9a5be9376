import errno
import os
import resource
import shutil
import subprocess
from contextlib import suppress

import pytest

from lpa.errors import UserError
from lpa.storage.outputs import (
    MARKER_FILE,
    Marker,
    atomic_directory,
    check_output_directory,
    files_of,
    read_marker,
    resolve_output,
    staging_directory,
    written_files,
)

KIND = "a thing"


def write(out, name="a", *, overwrite=False, kind=KIND):
    with atomic_directory(out, kind, overwrite=overwrite) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / name).write_text(name)


def write_and_fail(out):
    with atomic_directory(out, KIND, overwrite=True) as directory:
        (directory / "b").write_text("b")
        raise RuntimeError


def assert_holds(out, name="a"):
    assert files_of(out) == [MARKER_FILE, f"sub/{name}"]
    assert read_marker(out) == Marker(KIND, [f"sub/{name}"])


def test_a_directory_appears_once_it_is_complete(tmp_path):
    out = tmp_path / "out"
    with atomic_directory(out, KIND) as directory:
        (directory / "a").write_text("a")
        assert not out.exists()
    assert sorted(p.name for p in out.iterdir()) == [MARKER_FILE, "a"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["out", "deep/er/out"])
def test_a_failure_leaves_nothing(tmp_path, name):
    with pytest.raises(RuntimeError):
        write_and_fail(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    write(out)
    with pytest.raises(RuntimeError):
        write_and_fail(out)
    assert_holds(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_exists_is_replaced_only_when_asked(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write(out)  # an empty one holds nothing to lose
    with pytest.raises(UserError, match=r"already exists; choose .* --overwrite"):
        write(out, "b")
    write(out, "b", overwrite=True)
    assert_holds(out, "b")


def make_foreign(out, case):
    """A directory that the command did not write as it is; returns what must survive."""
    if case == "no marker":
        (out / "sub").mkdir(parents=True)
        (out / "sub" / "a").write_text("mine")
        return "sub/a"
    write(out, kind="another thing" if case == "another kind" else KIND)
    names = {
        "another kind": "sub/a",
        "a file": "notes.txt",
        "a file below": "sub/notes.txt",
        "a hidden file": ".notes",
        "a directory": "mine",
        "a link": "link",
        "a name with brackets": "sub/[a]",
        "a damaged marker": "sub/a",
    }
    path = out / names[case]
    if case == "a directory":
        path.mkdir()
    elif case == "a link":
        path.symlink_to(out.parent)
    elif case == "a damaged marker":
        (out / MARKER_FILE).write_text("null")
    elif case != "another kind":
        path.write_text("mine")
    return names[case]


@pytest.mark.parametrize(
    "case",
    [
        "no marker",
        "another kind",
        "a file",
        "a file below",
        "a hidden file",
        "a directory",
        "a link",
        "a name with brackets",
        "a damaged marker",
    ],
)
def test_overwrite_replaces_nothing_but_what_was_written(tmp_path, case):
    out = tmp_path / "out"
    name = make_foreign(out, case)
    before = files_of(out)
    with pytest.raises(UserError) as error:
        write(out, "b", overwrite=True)
    if case.startswith("a ") and "marker" not in case:
        assert f"holds {name}, which this command did not write" in str(error.value)
    assert files_of(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_growing_directory_is_known_by_patterns(tmp_path):
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "1.json").write_text("1")
    Marker(KIND, ["steps/*.json"]).save(tmp_path)
    check_output_directory(tmp_path, KIND, overwrite=True)
    (tmp_path / "steps" / "1.txt").write_text("1")
    with pytest.raises(UserError, match=r"holds steps/1\.txt"):
        check_output_directory(tmp_path, KIND, overwrite=True)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("file")
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "out")


def test_a_circle_of_links_is_refused(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(UserError, match="loop"):
        write(tmp_path / "one")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path, there):
    target, link = tmp_path / "disk" / "target", tmp_path / "out"
    target.parent.mkdir()
    if there:
        write(target)
    link.symlink_to(target)
    write(link, "b", overwrite=there)
    assert link.is_symlink()
    assert_holds(target, "b")
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_the_working_directory_is_written_in_place(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    inode = out.stat().st_ino
    monkeypatch.chdir(out)
    for name in "ab":
        write(out.__class__("."), name, overwrite=name == "b")
        assert_holds(out, name)
        assert out.stat().st_ino == inode
    assert sorted(p.name for p in out.iterdir()) == [MARKER_FILE, "sub"]


@pytest.mark.parametrize("place", ["beside", "in place"])
def test_a_rename_that_fails_leaves_what_was_there(tmp_path, monkeypatch, place):
    out = tmp_path / "out"
    write(out)
    if place == "in place":
        monkeypatch.chdir(out)
    replace = os.replace
    number = 0
    while files_of(out) == [MARKER_FILE, "sub/a"]:
        left = number

        def failing(source, target):
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(target))
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        with suppress(OSError):
            write(out, "b", overwrite=True)
        monkeypatch.setattr(os, "replace", replace)
        assert files_of(out) in ([MARKER_FILE, "sub/a"], [MARKER_FILE, "sub/b"])
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
        assert not list(out.glob(".lpa.*"))
        number += 1
    assert number > 2


@pytest.fixture
def mounted(tmp_path):
    """A separate small file system, where this process may mount one."""
    place = tmp_path / "disk" / "a mount"
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_mount_point_is_written_in_place(mounted):
    for name in "ab":
        with atomic_directory(mounted, KIND, overwrite=name == "b") as directory:
            assert directory.stat().st_dev == mounted.stat().st_dev
            (directory / "sub").mkdir()
            (directory / "sub" / name).write_text(name)
        assert_holds(mounted, name)
    assert sorted(p.name for p in mounted.iterdir()) == [MARKER_FILE, "sub"]
    assert list(mounted.parent.iterdir()) == [mounted]


def write_too_much(out):
    with atomic_directory(out, KIND, overwrite=True) as directory:
        (directory / "large").write_bytes(bytes(2**21))


def test_on_a_full_disk_what_was_there_stays(mounted):
    write(mounted)
    with pytest.raises(OSError, match="No space left"):
        write_too_much(mounted)
    assert_holds(mounted)


def test_a_bind_mount_is_written_in_place(mounted, tmp_path):
    inside = mounted / "inside"
    for place in (mounted / "bound", inside):
        place.mkdir()
    subprocess.run(["mount", "--bind", str(inside), str(mounted / "bound")], check=True)
    try:
        write(mounted / "bound")
        assert_holds(inside)
    finally:
        subprocess.run(["umount", str(mounted / "bound")], check=True)


def test_a_directory_in_one_that_cannot_be_written_is_written_in_place(tmp_path, monkeypatch):
    out = tmp_path / "parent" / "out"
    out.mkdir(parents=True)
    allowed = os.access
    # The superuser may write everywhere, so the answer is the only thing that can be tried for everyone.
    monkeypatch.setattr(os, "access", lambda path, mode: path != out.parent and allowed(path, mode))
    assert staging_directory(resolve_output(out), "x").parent == out
    write(out)
    assert_holds(out)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_follow_the_umask(tmp_path, umask):
    import torch
    from safetensors.torch import save_file

    before = os.umask(umask)
    try:
        with atomic_directory(tmp_path / "out", KIND) as directory:
            save_file({"x": torch.zeros(1)}, directory / "model.safetensors")
            (directory / "model.safetensors").chmod(0o600)
            (directory / "sub").mkdir()
    finally:
        os.umask(before)
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_an_error_of_safetensors_is_one_of_the_system(tmp_path):
    with pytest.raises(OSError, match="No space left") as error, written_files(tmp_path / "out"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert error.value.errno == 28
    assert error.value.filename == str(tmp_path / "out")


def test_an_error_of_a_copied_directory_is_one_of_the_system(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"0" * 2**12)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**11, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error, written_files(tmp_path):
            shutil.copytree(tmp_path / "source", tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG
