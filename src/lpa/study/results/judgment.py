"""Each variant of the studies of rivals at several lengths, judged as docs/protocol.md says."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lpa.study.results.comparison import Comparison, compare_family
from lpa.study.results.curves import (
    Curve,
    CurveKind,
    FittedCurve,
    InterpolatedCurve,
    compute_equivalent_gain,
    is_loss,
)
from lpa.study.results.study_results import StudyResult, VariantRow, compare_rows

# By seed.
Curves = Mapping[int, Curve]


@dataclass
class CurveComparison:
    """One variant at one length against a curve of the studies' own baseline.

    Attributes:
        equal_flops: perplexity against what the curve gives at the variant's FLOPs; None of the curve's own
            baseline, and with fewer than two seeds for which the curve gives a loss.
        gains: compute-equivalent gain by seed; empty where a run of the variant diverged, or one of the
            curve's baseline at any length. That of this baseline itself says how far the curve misses its
            losses.
        extrapolated: whether one of them is of a loss beyond the baseline's own.
    """

    equal_flops: Comparison | None
    gains: dict[int, float]
    extrapolated: bool


@dataclass
class Judgment:
    """One variant at one length, the baseline among them.

    Attributes:
        tokens: of training.
        equal_tokens: perplexity against the baseline's of the same length; None of the baseline itself, and
            with fewer than two seeds in common.
        fitted: by the power law of docs/protocol.md.
        interpolated: by straight lines, in logarithms, between the lengths.
    """

    variant: str
    tokens: int
    equal_tokens: Comparison | None
    fitted: CurveComparison
    interpolated: CurveComparison


def judge(studies: Sequence[StudyResult], baseline: str | None = None) -> list[Judgment]:
    """All variants, by length; those of one length but the baseline are a family.

    Args:
        studies: comparable ones, each of another length.
        baseline: that of the comparison at equal tokens, in the studies that have it; by default their own,
            which the curves are always of.
    """
    ordered = sorted(studies, key=lambda each: each.rows[0].tokens)
    fitted = _compare_with_curves(ordered, FittedCurve.from_losses)
    interpolated = _compare_with_curves(ordered, InterpolatedCurve.from_losses)
    found = []
    for result, by_law, by_lines in zip(ordered, fitted, interpolated, strict=True):
        rows = {row.variant: row for row in result.rows}
        tokens = _compare_at_tokens(rows, baseline or result.index.baseline)
        found += [
            Judgment(name, row.tokens, tokens.get(name), by_law[name], by_lines[name])
            for name, row in rows.items()
        ]
    return found


def _compare_at_tokens(rows: Mapping[str, VariantRow], baseline: str) -> dict[str, Comparison]:
    """All rows against that of the baseline; empty where there is none."""
    if baseline not in rows:
        return {}
    return compare_rows(rows.values(), rows[baseline])


def _compare_with_curves(
    studies: Sequence[StudyResult], kind: CurveKind
) -> list[dict[str, CurveComparison]]:
    """Compare the variants of each study, the baseline among them, with the curve of each seed."""
    curves = {
        seed: curve for seed, losses in baseline_losses(studies).items() if (curve := kind(losses))
    }
    curve_diverged = any(_own_baseline(result).diverged for result in studies)
    found = []
    for result in studies:
        rows = {row.variant: row for row in result.rows}
        others = {name: row for name, row in rows.items() if name != result.index.baseline}
        flops = _compare_at_flops(others, curves, curve_diverged)
        by_variant = {}
        for name, row in rows.items():
            gains = {} if row.diverged or curve_diverged else _gains(row, curves)
            by_variant[name] = CurveComparison(
                flops.get(name),
                {seed: gain for seed, (gain, _) in gains.items()},
                any(beyond for _, beyond in gains.values()),
            )
        found.append(by_variant)
    return found


def _compare_at_flops(
    rows: Mapping[str, VariantRow], curves: Curves, curve_diverged: bool
) -> dict[str, Comparison]:
    """Against what the curve of the same seed gives."""
    ratios = {
        name: {
            seed: perplexity / float(np.exp(expected))
            for seed, perplexity in row.perplexities.items()
            if seed in curves and (expected := curves[seed].loss_at(row.flops)) is not None
        }
        for name, row in rows.items()
    }
    seeds = {seed: 1.0 for by_seed in ratios.values() for seed in by_seed}
    diverged = {name for name, row in rows.items() if row.diverged or curve_diverged}
    return compare_family(ratios, seeds, diverged)


def _gains(row: VariantRow, curves: Curves) -> dict[int, tuple[float, bool]]:
    """Compute-equivalent gain of each seed, and whether it is extrapolated."""
    found = {
        seed: compute_equivalent_gain(_loss(perplexity), row.flops, curves[seed])
        for seed, perplexity in row.perplexities.items()
        if seed in curves
    }
    return {seed: gain for seed, gain in found.items() if gain}


def baseline_losses(studies: Sequence[StudyResult]) -> dict[int, dict[float, float]]:
    """Seed -> training FLOPs -> test loss of the studies' own baseline.

    Seeds that lack a length which another has are left out: their curve would be another one.
    """
    losses: dict[int, dict[float, float]] = defaultdict(dict)
    for result in studies:
        row = _own_baseline(result)
        for seed, perplexity in row.perplexities.items():
            if is_loss(loss := _loss(perplexity)):
                losses[seed][row.flops] = loss
    lengths = {flops for by_flops in losses.values() for flops in by_flops}
    return {seed: by_flops for seed, by_flops in losses.items() if by_flops.keys() == lengths}


def _own_baseline(result: StudyResult) -> VariantRow:
    return next(row for row in result.rows if row.variant == result.index.baseline)


def _loss(perplexity: float) -> float:
    """Nats per token; nan of what is no positive number."""
    return math.log(perplexity) if perplexity > 0 else math.nan
