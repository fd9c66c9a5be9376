"""Processes in which this package cannot be imported."""

import os
import subprocess
import sys

import pytest

_BLOCK = """
import sys
try:
    import lpa
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package is here")
"""


@pytest.fixture(scope="package")
def without_package(tmp_path_factory):
    """Runs a script there, with arguments, and gives what became of it."""
    directory = tmp_path_factory.mktemp("without")
    (directory / "sitecustomize.py").write_text("import sys\nsys.modules['lpa'] = None\n")
    env = os.environ | {
        "PYTHONPATH": str(directory),
        "HF_HOME": str(directory / "hf"),
        "HF_HUB_OFFLINE": "1",
    }

    def run(script, *arguments):
        return subprocess.run(
            [sys.executable, "-c", _BLOCK + script, *map(str, arguments)],
            env=env,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
