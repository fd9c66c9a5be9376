"""Learning rates tuned by variant, with the same trials for each."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lpa.study.design.grid import Study
from lpa.study.design.study_index import TUNING_SUFFIX, read_index
from lpa.study.results.study_results import StudyResult
from lpa.study.results.tuning_results import tuned_rows

TUNING_SEED = 100  # the first; studies that are reported begin at 0
MIN_RATE, MAX_RATE = 0.00025, 0.064  # between which the rates are extended

_RATE = "optim.lr"


def tune_learning_rates(study: Study, rates: Sequence[float]) -> Study:
    """The study that tries the same peak learning rates for each variant of another.

    Its seeds are others than those that any study reports.
    """
    tuning = replace(study, name=f"{study.name}{TUNING_SUFFIX}", tunes=True, first_seed=TUNING_SEED)
    tuning.question = "Which learning rate is best for each variant?"

    def trial_name(variant: str, rate: float) -> str:
        return f"{variant}, lr={rate:g}"

    tuning.variants = [
        replace(
            variant,
            name=trial_name(variant.name, rate),
            baseline=trial_name(variant.baseline, rate),
            overrides=variant.overrides | {_RATE: rate},
            tunes=variant.name,
        )
        for variant in study.variants
        for rate in sorted(rates)
    ]
    tuning.baseline = tuning.variants[0].baseline
    return tuning


def first_rates(study: Study) -> list[float]:
    """The learning rates that tuning begins with: a quarter, half and the whole of the scale's."""
    rate = float(study.base[_RATE])
    return [rate / 4, rate / 2, rate]


def extend_rates(rates: Sequence[float], best: Iterable[float | None]) -> list[float]:
    """The rates with one more at each end at which a best one is, by a factor of two.

    The same as given where no best rate is at an end, or where the end is the last that is tried.

    Args:
        best: as `best_rates` gives them; None counts as the lowest, as only lower rates may do better.
    """
    low, high, best = min(rates), max(rates), set(best)
    extended = set(rates)
    if (low in best or None in best) and low / 2 >= MIN_RATE:
        extended.add(low / 2)
    if high in best and high * 2 <= MAX_RATE:
        extended.add(high * 2)
    return sorted(extended)


def tried_rates(index_file: Path) -> list[float]:
    """What an earlier start of a tuning has found; empty where there was none."""
    if not index_file.exists():
        return []
    return sorted({variant.overrides[_RATE] for variant in read_index(index_file).variants})


def best_rates(result: StudyResult) -> dict[str, float | None]:
    """The best rate by variant, of a tuning that lost no trial; None of one that diverged at every rate."""
    overrides = {trial.name: trial.overrides for trial in result.index.variants}
    best: dict[str, float | None] = {
        trial.tunes: None for trial in result.index.variants if trial.tunes
    }
    return best | {name: overrides[row.variant][_RATE] for name, row in tuned_rows(result).items()}
