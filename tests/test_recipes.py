"""Every recipe is accepted as it stands."""

from pathlib import Path

import pytest

from lpa.cli.train import build_parser

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("placement", ["none", "attention"])
def test_a_recipe_and_its_dense_baseline(recipe, placement):
    parser = build_parser()
    arguments = parser.parse_args(
        [
            *("--config", str(recipe), "--data.path", "data", "--out", "run"),
            *("--model.placement", placement),
        ]
    )
    sections = parser.instantiate_classes(arguments)
    assert sections["model"].placement == placement
    assert sections["train"].steps > sections["optim"].warmup_steps
