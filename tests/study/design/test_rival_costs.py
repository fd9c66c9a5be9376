"""The costs of the rivals, by hand where they can be counted by hand."""

import pytest

from lpa.cli import main
from lpa.errors import UserError
from lpa.study.design.grid_files import read_grid
from lpa.study.design.rival_costs import rival_costs


@pytest.fixture(scope="module")
def costs():
    return {cost.variant: cost for cost in rival_costs("pico")}


def test_every_rival_has_a_row_and_every_method_of_a_paper_its_source(costs):
    grid = read_grid("rivals")
    assert list(costs) == list(grid["variants"])
    plain = {"dense", "smaller dense", "all layers", "FFN"}
    assert {name for name, cost in costs.items() if cost.source} == set(costs) - plain


def test_parameters_and_flops(costs):
    dense, lpa = costs["dense"], costs["LPA"]
    # Four projections of 128 x 128 in four layers become pairs of rank 32.
    assert dense.parameters - lpa.parameters == 4 * 4 * (128 * 128 - 2 * 32 * 128)
    per_weight = 6  # FLOPs of a multiplication forward and backward
    saved = dense.training_flops_per_token - lpa.training_flops_per_token
    assert saved == per_weight * (dense.parameters - lpa.parameters)
    assert costs["smaller dense"].training_flops_per_token == pytest.approx(
        lpa.training_flops_per_token, rel=0.001
    )
    # SLTrain forms whole matrices; the other low-rank rivals have the FLOPs of their factors.
    assert costs["SLTrain"].training_flops_per_token == dense.training_flops_per_token
    assert costs["CoLA"].training_flops_per_token == costs["all layers"].training_flops_per_token


def test_optimizer_states(costs):
    inside = 4 * (4 * 128 * 128 + 3 * 128 * 344)
    outside = costs["dense"].parameters - inside
    assert costs["dense"].optimizer_bytes == 4 * (
        inside + 2 * outside
    )  # Muon inside, AdamW outside
    moments = 4 * (4 * 2 * 32 * 128 + 3 * 2 * 32 * 344)
    assert costs["APOLLO"].optimizer_bytes == 4 * (moments + 2 * outside)
    kept = 4 * (4 * 32 * 128 + 3 * 32 * 128)
    assert costs["GaLore"].optimizer_bytes == 4 * (moments + kept + 2 * outside)


def test_caches(costs):
    # Keys and values of four layers in two bytes; LPA keeps latents of rank 32 of the values.
    assert costs["dense"].kv_cache_bytes_per_token == 2 * 4 * 2 * 128
    assert costs["LPA"].kv_cache_bytes_per_token == 2 * 4 * (128 + 32)
    assert costs["CoLA"].kv_cache_bytes_per_token == costs["dense"].kv_cache_bytes_per_token


def test_the_command(capsys):
    main(["plan", "pico", "--rivals"])
    shown = capsys.readouterr().out
    assert "SLTrain" in shown
    assert "2406.02214" in shown
    assert max(map(len, shown.splitlines())) <= 80
    with pytest.raises(SystemExit):
        main(["plan", "pico", "--rivals", "--rank", "8"])
    assert "--rank: got it with --rivals" in capsys.readouterr().err
    with pytest.raises(UserError, match="expected one of tiny"):
        rival_costs("1b")
