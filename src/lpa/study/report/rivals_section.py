"""The comparison of rivals at several lengths: the tables and the figure."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpa.display.html import DrawFunction
from lpa.display.units import format_count
from lpa.study.report.figures import draw_legend, label_of, line_style, marker_style
from lpa.study.results.comparison import Comparison
from lpa.study.results.families import are_comparable, is_family
from lpa.study.results.judgment import CurveComparison, Judgment, judge
from lpa.study.results.statistics import Difference, Summary
from lpa.study.results.study_results import StudyResult, VariantRow

HEADINGS = (
    "variant",
    "tokens",
    "perplexity",
    "at equal tokens",
    "p (Holm)",
    "at equal FLOPs",
    "p (Holm)",
    "compute-equivalent gain",
)
INTERPOLATED_HEADINGS = ("variant", "tokens", *HEADINGS[-3:])


@dataclass
class RivalsComparison:
    """The studies of rivals at one scale that are comparable.

    Attributes:
        title: names the directories where others at this scale are not comparable with these.
        directories: those of the studies, the shortest length first.
        baseline: that of the comparison at equal tokens.
        own_baseline: that of the studies, whose losses make the curves.
        rows: of all lengths, the shortest first; with the baseline's.
        judgments: of the rows.
    """

    scale: str
    title: str
    directories: list[Path]
    baseline: str
    own_baseline: str
    rows: list[VariantRow]
    judgments: list[Judgment]

    @property
    def score_names(self) -> list[str]:
        return sorted({name for row in self.rows for name in row.scores})

    @property
    def headings(self) -> tuple[str, ...]:
        return (*HEADINGS, *self.score_names)

    def cells(self) -> list[list[str]]:
        """The table under `headings`."""
        return [
            [
                *_row_cells(row, found),
                *(_score_cell(row.scores.get(name, {}), row) for name in self.score_names),
            ]
            for row, found in zip(self.rows, self.judgments, strict=True)
        ]

    def interpolated_cells(self) -> list[list[str]]:
        """The table under `INTERPOLATED_HEADINGS`, of the rows that such lines say anything of."""
        return [
            [row.variant, format_count(row.tokens), *_curve_cells(found.interpolated, row)]
            for row, found in zip(self.rows, self.judgments, strict=True)
            if row.variant != self.own_baseline and found.interpolated.gains
        ]

    def to_dict(self) -> dict[str, Any]:
        """The section as `lpa report --json` prints it."""
        return {
            "scale": self.scale,
            "directories": [str(directory) for directory in self.directories],
            "baseline": self.baseline,
            "judgments": [asdict(found) for found in self.judgments],
        }


def compare_rivals(
    studies: Sequence[StudyResult], baseline: str | None = None
) -> list[RivalsComparison]:
    """One for each scale, data and settings; none of a study that tunes, whose seeds are not those that
    report.

    Args:
        baseline: that of the comparison at equal tokens; by default the studies' own. What has it at no
            length is left out.
    """
    groups = _comparable_studies(studies)
    scales = Counter(group[0].index.scale for group in groups)
    comparisons = []
    for group in groups:
        scale, own_baseline = group[0].index.scale, group[0].index.baseline
        rows = [row for result in group for row in result.rows]
        if baseline and all(row.variant != baseline for row in rows):
            continue
        directories = [directory for result in group for directory in result.directories]
        title = f"Rivals of low-rank attention at {scale}"
        if scales[scale] > 1:
            title += f", in {', '.join(map(str, directories))}"
        comparisons.append(
            RivalsComparison(
                scale,
                title,
                directories,
                baseline or own_baseline,
                own_baseline,
                rows,
                judge(group, baseline),
            )
        )
    return comparisons


def _comparable_studies(studies: Sequence[StudyResult]) -> list[list[StudyResult]]:
    """The studies of rivals, those of each comparison with one at each length, the shortest first."""
    groups: list[list[StudyResult]] = []
    for result in studies:
        if not is_family(result.index):
            continue
        tokens = result.rows[0].tokens
        for group in groups:
            lengths = {other.rows[0].tokens for other in group}
            if are_comparable(group[0].index, result.index) and tokens not in lengths:
                group.append(result)
                break
        else:
            groups.append([result])
    return [sorted(group, key=lambda each: each.rows[0].tokens) for group in groups]


def _row_cells(row: VariantRow, found: Judgment) -> list[str]:
    perplexity = "–" if row.perplexity is None else _with_deviation(row.perplexity, ".2f")
    return [
        row.variant,
        format_count(row.tokens),
        perplexity + _missing_seeds(row),
        *_comparison_cells(found.equal_tokens, row),
        *_curve_cells(found.fitted, row),
    ]


def _curve_cells(found: CurveComparison, row: VariantRow) -> list[str]:
    """What the baseline's curve says: at equal FLOPs, with its p-value, and the compute-equivalent gain."""
    gain = "–"
    if over := Difference.between(found.gains, dict.fromkeys(found.gains, 1.0)):
        gain = f"{1 + over.mean:.2f}"
        if not math.isnan(over.low):
            gain += f" [{1 + over.low:.2f}, {1 + over.high:.2f}]"
        if found.extrapolated:
            gain += " (extrapolated)"
        gain += fewer_seeds(len(found.gains), row)
    return [*_comparison_cells(found.equal_flops, row), gain]


def _missing_seeds(row: VariantRow) -> str:
    """How many seeds there are where that is not all of them."""
    if not row.missing:
        return ""
    failed = f", {len(row.failed)} failed" if row.failed else ""
    return f" ({len(row.perplexities)} of {row.seeds} seeds{failed})"


def fewer_seeds(count: int, row: VariantRow) -> str:
    """How many seeds a figure rests on where that is not all of the row, as the baseline may lack some."""
    return "" if count == row.seeds else f" ({count} of {row.seeds} seeds)"


def _comparison_cells(found: Comparison | None, row: VariantRow) -> tuple[str, str]:
    if found is None:
        return "–", "–"
    if found.diverged:
        return found.verdict, "–"
    change, low, high = (value - 1 for value in (found.ratio, found.low, found.high))
    seeds = fewer_seeds(found.count, row)
    return f"{change:+.1%} [{low:+.1%}, {high:+.1%}]{seeds}", f"{found.p_adjusted:.3f}"


def _score_cell(by_seed: dict[int, float], row: VariantRow) -> str:
    """An accuracy as a percentage, a perplexity as it is."""
    if not by_seed:
        return "–"
    summary = Summary.from_values(list(by_seed.values()))
    score = _with_deviation(summary, ".1%" if summary.mean <= 1 else ".2f")
    return score + fewer_seeds(len(by_seed), row)


def _with_deviation(summary: Summary, form: str) -> str:
    text = f"{summary.mean:{form}}"
    return text if summary.count < 2 else f"{text} ± {summary.std:{form}}"


def draw_loss_against_flops(comparison: RivalsComparison) -> DrawFunction:
    """Test loss at the end of each length against its training FLOPs, with the range of the seeds."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        by_variant: dict[str, list[VariantRow]] = defaultdict(list)
        for row in comparison.rows:
            if row.is_finite:
                by_variant[row.variant].append(row)
        for number, rows in enumerate(by_variant.values()):
            losses = [np.log(list(row.perplexities.values())) for row in rows]
            flops = [row.flops for row in rows]
            mean, low, high = (
                np.array([of(seeds) for seeds in losses]) for of in (np.mean, np.min, np.max)
            )
            style = line_style(number) | marker_style(number)
            label = label_of(max(rows, key=lambda row: row.diverged_runs))
            axes.errorbar(
                flops,
                mean,
                [mean - low, high - mean],
                label=label,
                capsize=2,
                markersize=4,
                **style,
            )
            axes.fill_between(flops, low, high, color=style["color"], alpha=0.15)
        axes.set_xscale("log")
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel("test loss (nats per token)")
        draw_legend(figure, axes)

    return draw
