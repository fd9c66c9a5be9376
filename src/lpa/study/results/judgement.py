"""The table of docs/protocol.md, from the studies of rivals at several lengths."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lpa.study.results.comparison import Comparison, compare_family, compute_equivalent_gain
from lpa.study.results.statistics import PowerLaw
from lpa.study.results.study_results import StudyResult


@dataclass
class Judgement:
    """One variant at one length, against the baseline.

    Attributes:
        tokens: of training.
        equal_tokens: perplexity against the baseline's of the same length.
        equal_flops: against what the baseline's fitted curve gives at the variant's FLOPs; None where the
            baseline has fewer than three lengths.
        gains: compute-equivalent gain by seed.
        extrapolated: whether one of them rests on the curve beyond the baseline's own losses.
    """

    variant: str
    tokens: int
    equal_tokens: Comparison | None
    equal_flops: Comparison | None
    gains: dict[int, float]
    extrapolated: bool


def judge(studies: Sequence[StudyResult]) -> list[Judgement]:
    """All variants but the baseline, by length, those of one length being a family.

    Args:
        studies: comparable ones, each of another length.
    """
    curves = baseline_curves(studies)
    found = []
    for result in sorted(studies, key=lambda each: each.rows[0].tokens):
        rows = {row.variant: row for row in result.rows}
        baseline = rows.pop(result.index.baseline)
        at_curve = {
            name: {
                seed: perplexity / float(np.exp(expected))
                for seed, perplexity in row.perplexities.items()
                if (expected := _loss_at(curves.get(seed, {}), row.flops)) is not None
            }
            for name, row in rows.items()
        }
        tokens = compare_family({n: r.perplexities for n, r in rows.items()}, baseline.perplexities)
        seeds = {seed: 1.0 for ratios in at_curve.values() for seed in ratios}
        flops = compare_family(at_curve, seeds)
        for name, row in rows.items():
            gains = {
                seed: gain
                for seed, perplexity in row.perplexities.items()
                if (
                    gain := compute_equivalent_gain(
                        _loss(perplexity), row.flops, curves.get(seed, {})
                    )
                )
            }
            found.append(
                Judgement(
                    name,
                    row.tokens,
                    tokens.get(name),
                    flops.get(name),
                    {seed: gain for seed, (gain, _) in gains.items()},
                    any(beyond for _, beyond in gains.values()),
                )
            )
    return found


def baseline_curves(studies: Sequence[StudyResult]) -> dict[int, dict[float, float]]:
    """Seed -> training FLOPs -> test loss of the baseline."""
    curves: dict[int, dict[float, float]] = defaultdict(dict)
    for result in studies:
        row = next(row for row in result.rows if row.variant == result.index.baseline)
        for seed, perplexity in row.perplexities.items():
            curves[seed][row.flops] = _loss(perplexity)
    return dict(curves)


def _loss(perplexity: float) -> float:
    """Nats per token; nan of what is no positive number."""
    return math.log(perplexity) if perplexity > 0 else math.nan


def _loss_at(curve: dict[float, float], flops: float) -> float | None:
    law = PowerLaw.fit(list(curve), list(curve.values()))
    return None if law is None else law.factor * flops**law.exponent
