"""The script that checks a GPU, on whatever there is: without a GPU it does everything in small."""

import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts/gpu_check"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes ten minutes on a GPU")
def test_the_script_without_a_gpu_tries_every_part(lpa, tmp_path):
    finished = lpa("--out", tmp_path, script=SCRIPT)
    assert finished.code == 0, finished.stderr
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert not report["machine"]["is_gpu"]
    assert report["tests"]["skipped"] > 5
    assert report["tests"]["passed"] == 0
    assert report["tests"]["failed"] == []
    assert report["bench"]["eager"]["models"]["attention"]["step_ratio"] > 0
    assert 0 < report["engine"]["overhead"] < 1
    assert report["memory"]["planned_bytes"] > 2**20
    assert report["resume"] == {"same_bits": True, "largest_difference": 0.0}
    page = (tmp_path / "gpu-check.md").read_text()
    assert page in finished.stdout
    assert "No GPU here" in page
