"""The house: files of one idea, folders that one looks over at a glance, tests that all run together."""

from collections import Counter
from pathlib import Path

import lpa

TESTS = Path(__file__).parent
FOLDERS = (Path(lpa.__file__).parent, TESTS, TESTS.parent / "benchmarks", TESTS.parent / "scripts")
MODULES = [path for folder in FOLDERS for path in folder.rglob("*.py")]
MAX_LINES = 450
MAX_MODULES = 12


def test_no_file_is_too_long():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_folder_has_too_many_modules():
    counts = Counter(path.parent for path in MODULES if not path.name.startswith("__"))
    assert {folder: count for folder, count in counts.items() if count > MAX_MODULES} == {}


def test_no_two_modules_of_tests_have_one_name():
    """pytest imports each by its name alone, so that two of one name stop the whole suite."""
    names = Counter(path.name for path in TESTS.rglob("*.py") if "__" not in path.name)
    del names["conftest.py"]  # which pytest tells apart
    assert [name for name, count in names.items() if count > 1] == []
