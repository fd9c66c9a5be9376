"""Every command that writes: whole output or none, on whatever disk, and nothing of the user's removed."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lpa.cli import main
from lpa.convert.merge import merge_directory
from lpa.data import bundled_corpus
from lpa.storage.outputs import content_of, files_of
from lpa.study.design.grid import expand_grid
from lpa.study.execution.job_runner import create_jobs
from lpa.study.execution.run_worker import train_and_score
from lpa.train.config import RunConfig

# In one worker: they share what takes long to make.
pytestmark = pytest.mark.xdist_group("command outputs")

DIRECTORIES = [
    "prepare",
    "train",
    "convert merge",
    "convert factorize",
    "convert import-published",
    "analyze",
]
FILES = ["convert gguf", "report", "bench"]


@pytest.fixture(scope="module")
def merged(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "model"
    merge_directory(run, out)
    return out


@pytest.fixture(scope="module")
def study(prepared, tmp_path_factory) -> Path:
    """A study of a single run, which is finished."""
    out = tmp_path_factory.mktemp("study") / "out"
    grid = expand_grid("placement", "tiny", vocab_size=300, steps=2)
    del grid.variants[1:]
    [job] = create_jobs(grid, 1, out, prepared)
    train_and_score(RunConfig.load(job.recipe), job.run)
    return out


@pytest.fixture
def glue(tmp_path_factory) -> Path:
    """One task of a few examples."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "SST-2").mkdir()
    for name in ("train", "dev"):
        (folder / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\na cat\t1\na dog\t0\n")
    return folder


@pytest.fixture
def command(request, run, prepared, tiny, forked_children):
    """Makes the arguments of a command that writes to `out`: `command("analyze", out)`."""

    def arguments(name: str, out: Path | str, *more: object) -> list[str]:
        def of(fixture: str) -> Path:
            return request.getfixturevalue(fixture)

        rest: dict[str, list[object]] = {}
        if name == "prepare":
            rest[name] = [bundled_corpus("test"), "--vocab-size", 300, "--test-fraction", 0.1]
        elif name == "train":
            best = ["--checkpoint.keep_best", "true", "--checkpoint.every", 1]
            rest[name] = ["--data.path", prepared, *tiny, "--train.steps", 2, *best]
        elif name == "convert import-published":
            golden = of("shared") / "golden" / "setting2.safetensors"
            rest[name] = [golden, "--setting", 2, "--num-attention-heads", 4]
        elif name == "report":
            rest[name] = [of("study")]
        elif name == "study":
            rest[name] = ["placement", "--scale", "tiny", "--data", prepared]
        elif name == "demo":
            rest[name] = ["--steps", 1]
        elif name == "eval glue":
            rest[name] = [run, "--tasks", "sst2", "--data", of("glue")]
        elif name == "bench":
            shape = ["--placement", "none", "--seq-len", 8, "--batch-size", 1, "--rounds", 1]
            rest[name] = ["nano", *shape, "--threads", 1, "--device", "cpu"]
        else:
            more = ("--rank", 4, *more) if name == "convert factorize" else more
            rest[name] = [of("merged") if "convert" in name and "merge" not in name else run]
        option = "--figure" if name == "bench" else "--out"
        return [*name.split(), *map(str, (*rest[name], option, out, *more))]

    return arguments


@pytest.fixture
def refused(capsys):
    """Run a command that must end as a user's mistake does; the one line that it prints."""

    def run_it(arguments: list[str]) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(arguments)
        said = capsys.readouterr().err.splitlines()
        assert end.value.code == 2, said
        errors = [line for line in said if line.startswith("lpa: error: ")]
        assert len(errors) == 1, said
        assert not [line for line in said if "Traceback" in line]
        return errors[0]

    return run_it


@pytest.fixture(params=[0o022, 0o027], ids=["umask 022", "umask 027"])
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(out: Path) -> dict[str, str]:
    """The access of everything below `out`."""
    return {path.name: oct(path.stat().st_mode & 0o777) for path in [out, *out.rglob("*")]}


def assert_follows(umask: int, out: Path) -> None:
    for path in [out, *out.rglob("*")]:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == expected, (path, modes(out))


@contextmanager
def mount(place: Path, size: int) -> Iterator[Path]:
    """its own file system of so many bytes, where this process may mount one."""
    place.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        done = subprocess.run(["mount", *options], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond this: what a full disk does, without a disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", [*DIRECTORIES, *FILES])
def test_all_that_is_written_follows_the_umask(command, tmp_path, umask, name):
    out = tmp_path / "deep" / "out"
    main(command(name, out))
    assert out.exists()
    assert_follows(umask, tmp_path / "deep")


def test_what_a_study_keeps_follows_the_umask(study):
    umask = os.umask(0o022)
    os.umask(umask)
    assert_follows(umask, study)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_mount_point_is_written_and_replaced_in_place(command, refused, tmp_path, name):
    (tmp_path / "disk").mkdir()
    with mount(tmp_path / "disk", 2**16) as disk, mount(disk / "out", 2**24) as out:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        main(command(name, out))
        written = files_of(out)
        main(command(name, out, "--overwrite"))
        assert len(files_of(out)) == len(written)
        assert list(out.parent.iterdir()) == [out]

        (out / "notes.txt").write_text("mine")
        before = files_of(out)
        assert "out holds notes.txt, which this command" in refused(
            command(name, out, "--overwrite")
        )
        assert files_of(out) == before


@pytest.mark.parametrize("name", DIRECTORIES)
@pytest.mark.parametrize("place", ["working directory", "empty directory/"])
def test_a_directory_that_is_there_is_written(command, tmp_path, monkeypatch, name, place):
    out = tmp_path / "out"
    out.mkdir()
    given = f"{out}/"
    if place == "working directory":
        monkeypatch.chdir(out)
        given = "."
    main(command(name, given))
    written = files_of(out)
    main(command(name, given, "--overwrite"))
    assert len(files_of(out)) == len(written) > 1
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", [*DIRECTORIES, *FILES])
def test_a_link_stays_and_is_followed(command, tmp_path, name):
    link, target = tmp_path / "link", tmp_path / "disk" / "target"
    link.symlink_to(target)
    for more in ([], [] if name == "report" else ["--overwrite"]):
        main(command(name, link, *more))
        assert link.is_symlink()
        assert not target.is_symlink()
        assert target.is_file() if name in FILES else files_of(target)


@pytest.mark.parametrize("name", [*DIRECTORIES, *FILES, "study", "eval glue", "demo"])
def test_a_circle_of_links_is_refused(command, refused, tmp_path, name):
    link = tmp_path / "link"
    link.symlink_to(link)
    assert "links form a loop" in refused(command(name, link))
    assert list(tmp_path.iterdir()) == [link]


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_of_the_user_is_not_replaced(command, refused, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    # What other tools call theirs, and what earlier checks took for ours.
    for file in ("config.yaml", "config.json", "manifest.json", "analysis.json", "notes.txt"):
        (out / file).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert "--overwrite: " in refused(command(name, out, "--overwrite"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_user_is_not_replaced(command, refused, tmp_path, name):
    out = tmp_path / "out"
    out.write_text("mine")
    overwrite = [] if name == "report" else ["--overwrite"]
    assert str(out) in refused(command(name, out, *overwrite))
    assert out.read_text() == "mine"
    out.unlink()
    main(command(name, out))
    size = out.stat().st_size
    main(command(name, out, *overwrite))
    # Times differ, and with them the labels of a figure; a file that was added to would be twice as long.
    assert out.stat().st_size == pytest.approx(size, rel=0.5)


@pytest.mark.parametrize("name", [*DIRECTORIES, *FILES])
def test_a_full_disk_is_one_line_and_leaves_no_half(command, refused, tmp_path, name):
    whole = tmp_path / "whole"
    main(command(name, whole))
    files = [whole] if whole.is_file() else [path for path in whole.rglob("*") if path.is_file()]
    used = sum(path.stat().st_size for path in files)
    with mount(tmp_path / "disk", used // 2) as disk:
        said = refused(command(name, disk / "out"))
        assert "o space left" in said or "a disk with room" in said
        assert_no_half(disk / "out")
    for size in (64, max(path.stat().st_size for path in files) // 2):
        out = tmp_path / f"files of {size}" / "out"
        with largest_file(size):
            said = refused(command(name, out))
        assert "File too large" in said or "a disk with room" in said
        assert_no_half(out)


def assert_no_half(out: Path) -> None:
    """A run keeps what it resumes from, and `lpa prepare` what is finished; nobody else keeps a thing."""
    if (out / "config.yaml").exists():
        assert not (out / "result.json").exists()
    else:
        assert not out.exists() or not list(content_of(out))
    beside = {path.name for path in out.parent.iterdir()} if out.parent.exists() else set()
    assert beside <= {"out", ".out.partial"}
