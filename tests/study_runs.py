"""A tiny study in a process group of its own."""

import os
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).parent / "study" / "workers" / "two_variants.py"


def start_study(out: Path, data: Path) -> subprocess.Popen:
    """Dense and LPA, two seeds each."""
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(out), str(data)],
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
