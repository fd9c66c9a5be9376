import shutil

import pytest

from lpa.errors import UserError
from lpa.train.loading import load_model, model_directory


def test_a_run_means_its_final_model(run):
    assert model_directory(run) == run / "final"
    assert model_directory(run / "final") == run / "final"


def test_what_holds_no_model_is_refused(tmp_path, run):
    with pytest.raises(UserError, match="gone: no such directory"):
        model_directory(tmp_path / "gone")
    with pytest.raises(UserError, match=r"has no config\.json"):
        model_directory(tmp_path)
    shutil.copy(run / "config.yaml", tmp_path)
    with pytest.raises(UserError, match="a run that has not finished"):
        model_directory(tmp_path)


def test_damaged_weights_are_refused(tmp_path, run):
    shutil.copytree(run / "final", tmp_path / "final")
    weights = tmp_path / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="final: cannot be loaded"):
        load_model(tmp_path)
