"""The table of docs/protocol.md, from the studies of rivals at several lengths."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lpa.study.results.comparison import Comparison, compare_family
from lpa.study.results.curves import CurveKind, FittedCurve, compute_equivalent_gain
from lpa.study.results.study_results import StudyResult, VariantRow

# Seed -> training FLOPs -> test loss of a baseline.
Curves = Mapping[int, Mapping[float, float]]


@dataclass
class Judgement:
    """One variant at one length, against the baseline.

    Attributes:
        tokens: of training.
        equal_tokens: perplexity against the baseline's of the same length; None of the baseline itself.
        equal_flops: against what the curve of the studies' own baseline gives at the variant's FLOPs; None
            of that baseline, and where the curve gives nothing.
        gains: compute-equivalent gain by seed, by the same curve; empty where a run diverged of the variant,
            or of those of the curve. That of the curve's own baseline says how far the curve misses it.
        extrapolated: whether one of them rests on the curve beyond the losses of the baseline.
    """

    variant: str
    tokens: int
    equal_tokens: Comparison | None
    equal_flops: Comparison | None
    gains: dict[int, float]
    extrapolated: bool


def judge(
    studies: Sequence[StudyResult],
    baseline: str | None = None,
    kind: CurveKind = FittedCurve.through,
) -> list[Judgement]:
    """All variants, by length, those of one length being a family.

    Args:
        studies: comparable ones, each of another length.
        baseline: that of the comparison at equal tokens, in the studies that have it; by default their own,
            which the curve is always of.
        kind: of the curve; by default that of docs/protocol.md.
    """
    curves = baseline_curves(studies)
    curve_diverged = any(_own_baseline(result).diverged for result in studies)
    found = []
    for result in sorted(studies, key=lambda each: each.rows[0].tokens):
        rows = {row.variant: row for row in result.rows}
        tokens = _compare_at_tokens(rows, baseline or result.index.baseline)
        others = {name: row for name, row in rows.items() if name != result.index.baseline}
        flops = _compare_at_flops(others, curves, kind, curve_diverged)
        for name, row in rows.items():
            gains = {} if row.diverged or curve_diverged else _gains(row, curves, kind)
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


def _compare_at_tokens(rows: Mapping[str, VariantRow], baseline: str) -> dict[str, Comparison]:
    """All rows against that of the baseline; empty where there is none."""
    if baseline not in rows:
        return {}
    others = {name: row for name, row in rows.items() if name != baseline}
    return compare_family(
        {name: row.perplexities for name, row in others.items()},
        rows[baseline].perplexities,
        {name for name, row in others.items() if row.diverged or rows[baseline].diverged},
    )


def _compare_at_flops(
    rows: Mapping[str, VariantRow], curves: Curves, kind: CurveKind, curve_diverged: bool
) -> dict[str, Comparison]:
    """Against what the curve of the same seed gives."""
    ratios = {
        name: {
            seed: perplexity / float(np.exp(expected))
            for seed, perplexity in row.perplexities.items()
            if (curve := kind(curves.get(seed, {})))
            and (expected := curve.loss_at(row.flops)) is not None
        }
        for name, row in rows.items()
    }
    seeds = {seed: 1.0 for by_seed in ratios.values() for seed in by_seed}
    diverged = {name for name, row in rows.items() if row.diverged or curve_diverged}
    return compare_family(ratios, seeds, diverged)


def _gains(row: VariantRow, curves: Curves, kind: CurveKind) -> dict[int, tuple[float, bool]]:
    """By seed, and whether it is extrapolated."""
    found = {
        seed: compute_equivalent_gain(_loss(perplexity), row.flops, curves.get(seed, {}), kind)
        for seed, perplexity in row.perplexities.items()
    }
    return {seed: gain for seed, gain in found.items() if gain}


def baseline_curves(studies: Sequence[StudyResult]) -> Curves:
    """Those of the studies' own baseline, of the seeds with all lengths that any seed has: a curve that lacks
    one would be another curve."""
    curves: dict[int, dict[float, float]] = defaultdict(dict)
    for result in studies:
        row = _own_baseline(result)
        for seed, perplexity in row.perplexities.items():
            curves[seed][row.flops] = _loss(perplexity)
    lengths = max(map(len, curves.values()), default=0)
    return {seed: curve for seed, curve in curves.items() if len(curve) == lengths}


def _own_baseline(result: StudyResult) -> VariantRow:
    return next(row for row in result.rows if row.variant == result.index.baseline)


def _loss(perplexity: float) -> float:
    """Nats per token; nan of what is no positive number."""
    return math.log(perplexity) if perplexity > 0 else math.nan
