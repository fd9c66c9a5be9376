"""What the table of runs says of a model."""

import json

import pytest

from lpa.train.config import RunConfig
from lpa.train.run_table import read_run


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"placement": "none"}, ("none", None)),
        ({"placement": "all"}, ("all", "preset")),
        ({"placement": "all", "rank": 8, "ffn_rank": 16}, ("all", "8 / 16")),
        ({"ranks": {"q_proj": 8, "up_proj": None}}, ("by projection", "8")),
        ({"ranks": {"q_proj": [4, 8], "o_proj": 16}}, ("by projection", "4–16")),
        ({"ranks": {"q_proj": None}}, ("by projection", None)),
    ],
)
@pytest.mark.parametrize("is_source", [False, True])
def test_the_model_is_the_one_that_is_trained(tmp_path, model, expected, is_source):
    """That of the recipe, or the one that the run started from, of which the recipe says nothing."""
    given = {"from": "converted"} if is_source else model
    config = RunConfig.from_dict({"data": {"path": "data"}, "model": given})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    if is_source:
        source = {"sha256": "0" * 64, "config": {"model_type": "lpa", **model}, "generation": {}}
        (tmp_path / "initial_weights.json").write_text(json.dumps(source))
    row = read_run(tmp_path, "run")
    assert row.problem == ""
    assert (row.placement, row.rank) == expected


@pytest.mark.parametrize("content", ["null", "{}", '{"config": 3}', '{"config": {"rank": "x"}}'])
def test_a_damaged_file_of_the_source_is_named(tmp_path, content):
    config = RunConfig.from_dict({"data": {"path": "data"}, "model": {"from": "converted"}})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "initial_weights.json").write_text(content)
    assert read_run(tmp_path, "run").problem.startswith("initial_weights.json: ")
