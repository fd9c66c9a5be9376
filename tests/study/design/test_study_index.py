"""The index of a study, also of one that tunes rates by variant."""

import json
from dataclasses import asdict

import pytest

from lpa.errors import LPAWarning, UserError
from lpa.study.design.grid import expand_grid
from lpa.study.design.study_index import is_index, read_index, recorded_dtype
from lpa.study.execution.job_runner import create_jobs
from lpa.study.rates.rate_tuning import tune_learning_rates
from lpa.study.results.study_results import find_studies


def study_of(name, *, tune=False, dtype=None):
    study = expand_grid(name, "nano", vocab_size=300, dtype=dtype)
    return tune_learning_rates(study, [0.001, 0.002]) if tune else study


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_precision_of_a_tuning_by_variant_is_that_of_the_directory(prepared, tmp_path, dtype):
    create_jobs(study_of("rivals", tune=True, dtype=dtype), 1, tmp_path, prepared)
    assert recorded_dtype(tmp_path, "nano") == dtype
    assert recorded_dtype(tmp_path, "tiny") is None


def test_a_damaged_index_is_one_still(prepared, tmp_path):
    for study in (study_of("rivals", tune=True), study_of("rank")):
        create_jobs(study, 1, tmp_path, prepared)
    tuning = tmp_path / "rivals-tuning-nano.json"
    tuning.write_text("{")
    assert is_index(tuning)
    assert not is_index(tmp_path / "rivals-tuned-nano.json")
    with pytest.warns(LPAWarning, match=r"rivals-tuning-nano\.json.* is left out"):
        [study] = find_studies([tmp_path])
    assert study.index.name == "rank"


@pytest.mark.parametrize("name", ["rivals", "placement"])
def test_the_baseline_of_a_study_is_one_of_its_variants(prepared, tmp_path, name):
    create_jobs(study_of(name), 1, tmp_path, prepared)
    path = tmp_path / f"{name}-nano.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "baseline": "denser"}))
    with pytest.raises(UserError, match=r"-nano\.json: baseline: got 'denser'; expected one"):
        read_index(path)
    path.write_text(json.dumps(fields))
    assert asdict(read_index(path)) == fields
