import math

import pytest

from lpa.errors import UserError
from lpa.study.design.grid import expand_grid
from lpa.study.design.study_index import StudyIndex
from lpa.study.rates.rate_transfer import (
    loss_by_rate,
    parabola_vertex,
    rate_exponent,
    rate_shifts,
    transfer_rates,
)
from lpa.study.rates.rate_tuning import tune_learning_rates
from lpa.study.results.statistics import Summary
from lpa.study.results.study_results import StudyResult, VariantRow

RATES = [0.001, 0.002, 0.004, 0.008]


def parabola(best: float) -> dict[float, float]:
    return {rate: 4 + 0.1 * math.log(rate / best) ** 2 for rate in RATES}


def tuning(best: dict[str, float]) -> StudyResult:
    """One whose losses are least at the rates given."""
    study = tune_learning_rates(expand_grid("rivals", "tiny", only=list(best)), RATES)
    index = StudyIndex(**vars(study), seeds=1, split="test", data="", data_hashes={}, runs=[])
    rows = []
    for trial in study.variants:
        loss = parabola(best[trial.tunes])[trial.overrides["optim.lr"]]
        perplexity = math.exp(loss)
        rows.append(
            VariantRow(
                trial.name,
                trial.baseline,
                trial.parameters,
                trial.train_flops_per_token,
                trial.tokens,
                None,
                missing=[],
                perplexities={100: perplexity},
                validation=perplexity,
                perplexity=Summary(perplexity, math.nan, 1),
            )
        )
    return StudyResult(index, rows, {}, [])


@pytest.mark.parametrize("best", [0.0015, 0.003, 0.004, 0.0051])
def test_the_vertex_is_the_lowest_point_of_a_parabola(best):
    assert parabola_vertex(parabola(best)) == pytest.approx(best)


def test_the_vertex_between_equal_neighbors_is_the_best_rate_to_the_last_digit():
    assert parabola_vertex({0.002: 3.9, 0.004: 3.8, 0.008: 3.9}) == 0.004
    assert parabola_vertex({0.002: 3.8, 0.004: 3.8, 0.008: 3.8}) == 0.002
    assert parabola_vertex({0.002: 3.9, 0.004: 3.8, 0.008: 3.8}) == pytest.approx(0.004 * 2**0.5)


def test_the_vertex_of_rates_of_which_one_between_is_missing():
    losses = parabola(0.003)
    del losses[0.002]
    assert parabola_vertex(losses) == pytest.approx(0.003)


@pytest.mark.parametrize("best", [0.0001, 0.1])
def test_an_extreme_rate_is_kept(best):
    assert parabola_vertex(parabola(best)) in (RATES[0], RATES[-1])


@pytest.mark.parametrize(
    ("at_2", "at_6", "exponent"),
    [
        ({"dense": 0.004, "LPA": 0.004}, {"dense": 0.004, "LPA": 0.004}, 0.0),
        ({"dense": 0.004, "LPA": 0.005}, {"dense": 0.004 * 3**-0.2, "LPA": 0.005 * 3**-0.4}, 0.3),
        ({"dense": 0.002, "LPA": 0.002}, {"dense": 0.004, "LPA": 0.004}, 0.0),
        ({"dense": 0.006, "LPA": 0.006}, {"dense": 0.0015, "LPA": 0.0015}, 0.5),
    ],
)
def test_the_exponent_is_the_mean_of_both_variants_within_bounds(at_2, at_6, exponent):
    shifts = rate_shifts(tuning(at_2), tuning(at_6), (2, 6), ["dense", "LPA"])
    assert rate_exponent(shifts) == pytest.approx(exponent, abs=1e-6)


def test_a_shift_says_where_a_best_rate_has_no_neighbor_on_one_side():
    best = {"dense": 0.004, "LPA": 0.0001}
    shifts = rate_shifts(tuning({"dense": 0.004, "LPA": 0.004}), tuning(best), (2, 6), list(best))
    assert {name: shift.unfitted for name, shift in shifts.items()} == {"dense": [], "LPA": [6]}
    assert shifts["LPA"].long == RATES[0]
    assert shifts["LPA"].exponent == pytest.approx(math.log(4) / math.log(3))


@pytest.mark.parametrize("field", ["base", "data_hashes"])
def test_tunings_of_other_data_or_settings_give_no_exponent(field):
    short, long = (tuning({"dense": 0.004, "LPA": 0.004}) for _ in range(2))
    setattr(long.index, field, {**getattr(long.index, field), "train.batch_size": 99})
    with pytest.raises(UserError, match="rivals-tuning at tiny: the two tunings differ in data"):
        rate_shifts(short, long, (2, 6), ["dense", "LPA"])


def test_rates_fall_with_the_length_by_the_exponent():
    tuned = {"dense": {"optim.lr": 0.004}, "FFN": {"optim.lr": 0.002}}
    assert transfer_rates(tuned, 0.5, 4.0) == {
        "dense": {"optim.lr": 0.002},
        "FFN": {"optim.lr": 0.001},
    }


def test_transferred_rates_have_four_digits():
    tuned = {"dense": {"optim.lr": 0.004}, "CoLA": {"optim.lr": 0.008}}
    assert transfer_rates(tuned, 0.123456789, 3.0) == {
        "dense": {"optim.lr": 0.003493},
        "CoLA": {"optim.lr": 0.006985},
    }


def test_a_rate_that_diverged_is_not_the_best():
    study = tuning({"dense": 0.004, "LPA": 0.004})
    for row, value in zip(study.rows[len(RATES) :], (math.nan, math.inf), strict=False):
        row.validation = value
    assert set(loss_by_rate(study, "LPA")) == {0.004, 0.008}
