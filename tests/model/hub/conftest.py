"""Processes in which this package cannot be imported."""

import pytest

_BLOCK = """
import sys
sys.modules["lpa"] = None  # so that no import finds it
"""


@pytest.fixture(scope="package")
def without_package(elsewhere):
    """Runs a script there, with arguments, and gives what became of it."""
    return lambda script, *arguments: elsewhere(_BLOCK + script, *arguments)
