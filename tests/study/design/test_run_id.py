"""A run's name: of what decides its figures, and the same in every version."""

import tarfile
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedConfig

from lpa.model.configuration_lpa import LPAConfig
from lpa.study.design.grid import expand_grid
from lpa.study.design.run_id import run_id
from lpa.study.design.study_index import read_index
from lpa.train.config import RunConfig

RECORDS = Path(__file__).parents[3] / "docs" / "records"


def test_a_run_is_known_by_what_decides_its_figures():
    study = expand_grid("placement", "tiny")
    dense, attention = study.variants[:2]

    def name(variant, seed=0, path="data", data="a"):
        return run_id(study.config(variant, seed, Path(path)), {"train": data}, 300)

    assert name(dense) == name(dense, path="elsewhere")
    config = study.config(dense, 0, Path("data"))
    config.data.num_workers, config.data.verify = 2, False
    assert run_id(config, {"train": "a"}, 300) == name(dense)
    assert len({name(dense), name(attention), name(dense, seed=1), name(dense, data="b")}) == 4
    other = expand_grid("rank", "tiny")
    assert name(dense) == run_id(other.config(other.variants[0], 0, Path("x")), {"train": "a"}, 300)


def test_what_is_the_same_model_in_other_words_is_the_same_run():
    def name(study, variant):
        found = next(v for v in study.variants if v.name == variant)
        return run_id(study.config(found, 0, Path("data")), {"train": "a"}, 4096)

    placement, rank, surplus, sublayers, scale, tuning, recipe = (
        expand_grid(study, "nano")
        for study in ("placement", "rank", "surplus", "sublayers", "scale", "tuning", "recipe")
    )
    lpa = name(placement, "attention")
    assert lpa == name(rank, "r = d/4") == name(surplus, "nowhere") == name(sublayers, "qkvo")
    assert lpa == name(scale, "LPA d")
    assert lpa == name(tuning, "placement=attention, lr=0.004, init=0.005")
    assert lpa == name(recipe, "init=scaled, optimizer=muon, decay=factors, lr of factors=1")
    dense = name(placement, "dense")
    assert dense == name(scale, "dense d") == name(tuning, "placement=none, lr=0.004, init=0.005")
    assert len({lpa, dense, name(rank, "r = d/8"), name(sublayers, "q")}) == 4


@pytest.mark.parametrize(("records", "fewest"), [("contest", 50), ("studies", 300)])
def test_the_runs_of_earlier_versions_keep_their_names(records, fewest, tmp_path):
    with tarfile.open(RECORDS / f"{records}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    names = []
    for path in sorted(tmp_path.glob("*/*.json")):
        index = read_index(path)
        for name in {run.run for run in index.runs}:
            recorded = path.parent / "runs" / name / "config.yaml"
            if recorded.is_file():
                config = RunConfig.from_dict(yaml.safe_load(recorded.read_text()))
                names.append((name, run_id(config, index.data_hashes, 4096)))
    assert len(names) >= fewest
    assert [pair for pair in names if len(set(pair)) > 1] == []


def test_a_name_does_not_depend_on_what_transformers_adds_to_a_configuration(monkeypatch):
    study = expand_grid("placement", "tiny")
    config = study.config(study.variants[0], 0, Path("data"))
    name = run_id(config, {"train": "a"}, 300)
    written = PreTrainedConfig.to_dict
    monkeypatch.setattr(
        PreTrainedConfig,
        "to_dict",
        lambda self: written(self) | {"return_dict": None, "a_later_field": True},
    )
    assert LPAConfig().to_dict()["a_later_field"]
    assert run_id(config, {"train": "a"}, 300) == name
