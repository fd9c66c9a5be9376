"""Every recipe is accepted as it stands."""

from pathlib import Path

import pytest
from helpers.small_models import small_model

from lpa.cli.train import build_parser, run_config
from lpa.device import planned_device_type, resolve_dtype
from lpa.train.dry_run import plan_run

FOLDER = Path(__file__).parents[1] / "recipes"
HEALING = FOLDER / "heal.yaml"
RECIPES = sorted(set(FOLDER.glob("*.yaml")) - {HEALING})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("placement", ["none", "attention"])
def test_a_recipe_and_its_dense_baseline(recipe, placement):
    """Built without memory in the layout that it plans for, where no data is prepared yet."""
    parser = build_parser()
    arguments = parser.parse_args(["--config", str(recipe), "--model.placement", placement])
    config = run_config(parser, arguments)
    plan = plan_run(config)
    assert config.model.placement == placement
    assert plan.steps > config.optim.warmup_steps
    assert plan.steps * plan.tokens_per_step == plan.tokens
    # Shards hold their part, up to uneven rows.
    share = plan.parameters * 4 / plan.processes
    memory = plan.memory_bytes_per_device
    assert share <= memory["weights"] <= 1.01 * share
    if config.optim.name == "adamw":  # two moments in float32
        assert memory["optimizer"] == 2 * memory["gradients"]
    else:  # one moment of the matrices in the layers
        assert memory["weights"] < memory["optimizer"] < 2 * memory["weights"]


def test_the_healing_recipe(tmp_path, monkeypatch):
    """Beside the directories that its comment makes."""
    small_model(max_position_embeddings=512).save_pretrained(tmp_path / "converted")
    parent = small_model(placement="none", max_position_embeddings=512)
    parent.save_pretrained(tmp_path / "parent")
    monkeypatch.chdir(tmp_path)
    parser = build_parser()
    config = run_config(parser, parser.parse_args(["--config", str(HEALING)]))
    plan = plan_run(config)
    assert config.to_dict()["model"]["from"] == "converted"
    dtype = resolve_dtype(config.train.dtype, planned_device_type(config.train.device))
    teacher = dtype.itemsize * parent.num_parameters()
    assert plan.memory_bytes_per_device["teacher"] == teacher


def test_the_command_prints_what_a_recipe_takes(lpa, tmp_path):
    finished = lpa("train", FOLDER / "3b.yaml", "--dry-run", "--json", cwd=tmp_path)
    assert finished.code == 0, finished.stderr
    assert finished.json["processes"] == 8
    assert not list(tmp_path.iterdir())
    refused = lpa("train", FOLDER / "3b.yaml", "--dry-run", "--processes", 12)
    assert refused.code == 2
    assert "needs 8 processes; this run has 12" in refused.stderr
