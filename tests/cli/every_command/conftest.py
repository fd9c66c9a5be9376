import subprocess

import pytest
from commands.forking_popen import ForkingPopen


@pytest.fixture
def forked_children(monkeypatch) -> None:
    """Interpreters that commands start in the process of the tests begin as forks of it."""
    monkeypatch.setattr(subprocess, "Popen", ForkingPopen)
