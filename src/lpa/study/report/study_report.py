"""The report of studies: one page that needs nothing else, and its figures as files."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpa.display.html import draw_png, draw_svg, is_html_page, render_page
from lpa.display.units import format_bytes, format_count, format_flops, format_seconds
from lpa.storage.files import write_files
from lpa.storage.outputs import check_output_file
from lpa.study.design.grid_files import STUDIES, read_claims
from lpa.study.design.study_index import TUNING_SUFFIX
from lpa.study.report.figures import SCALING_AXES, scaling_fits, study_figures
from lpa.study.report.rivals_section import (
    INTERPOLATED_HEADINGS,
    RivalsComparison,
    compare_rivals,
    draw_loss_against_flops,
    fewer_seeds,
)
from lpa.study.results.families import is_family
from lpa.study.results.statistics import (
    A_RUN_DIVERGED,
    NO_DIFFERENCE,
    NOT_FINITE,
    ONE_SEED,
    Difference,
)
from lpa.study.results.study_results import StudyResult, VariantRow, compare_with, find_studies
from lpa.study.results.tuning_results import short_axes, tuned_rows

# How an earlier report named its figures.
_FIGURE = re.compile(rf"\d+-({'|'.join(STUDIES)})({TUNING_SUFFIX})?-\w+-\d+\.(svg|png)")

HEADINGS = (
    "variant",
    "parameters",
    "FLOPs/token",
    "perplexity",
    "± seeds",
    "runs",
    "against",
    "change",
    "95% interval",
    "verdict",
    "tokens/s",
    "time",
    "memory",
)


@dataclass
class StudyReport:
    """A page, the studies that it shows, and the comparisons of rivals."""

    page: Path
    studies: list[StudyResult]
    rivals: list[RivalsComparison]


def write_report(
    directories: str | Path | Sequence[str | Path],
    *,
    baseline: str | None = None,
    out: str | Path | None = None,
) -> StudyReport:
    """Writes one page of tables, intervals and figures of the studies in some directories.

    Args:
        directories: one or several that `run_study` wrote; finished or not.
        baseline: compare with this variant, in the studies that have it.
        out: the page; by default `report.html` in the first directory. A folder of the figures is beside
            it, as SVG and PNG. Both replace those of an earlier report.

    Returns:
        Where the page is, and the results that it shows.

    Raises:
        UserError: a directory that holds no study, no study with the baseline, or a file that is no report.

    Example:
        >>> report = lpa.write_report("runs/studies")
        >>> report.page
    """
    given = [directories] if isinstance(directories, str | Path) else directories
    folders = [Path(directory) for directory in given]
    studies, rivals = compare_studies(folders, baseline)
    page = folders[0] / "report.html" if out is None else Path(out)
    write_study_report(studies, page, rivals)
    return StudyReport(page, studies, rivals)


def compare_studies(
    directories: list[Path], baseline: str | None = None
) -> tuple[list[StudyResult], list[RivalsComparison]]:
    """The studies in some directories, and the rivals among them at several lengths.

    Args:
        baseline: as of `write_report`. A length without it is no study of the report, and still one of those
            that the curve of rivals is fitted to.

    Raises:
        UserError: as `find_studies`.
    """
    found = find_studies(directories)
    rivals = compare_rivals(found, baseline)
    return (found if baseline is None else compare_with(found, baseline)), rivals


def _titles(studies: Sequence[StudyResult]) -> list[str]:
    """Titles of the sections, with the length of training where several are of one study and scale."""
    counts = Counter(result.title for result in studies)
    return [
        f"{result.title}, {format_count(result.rows[0].tokens)} tokens"
        if counts[result.title] > 1
        else result.title
        for result in studies
    ]


def write_study_report(
    studies: list[StudyResult], path: Path, rivals: Sequence[RivalsComparison] = ()
) -> None:
    """Write the page, and beside it a folder of the figures as SVG and PNG; both replace an earlier report's.

    Raises:
        UserError: `path` is a directory, or a file that is no such page.
    """
    path = check_output_file(path, "a report", is_html_page, overwrite=True)
    folder = path.with_name(f"{path.stem}-figures")
    sections, files = [], {}
    for section, (result, title) in enumerate(zip(studies, _titles(studies), strict=True), 1):
        figures = []
        for number, (caption, draw) in enumerate(study_figures(result).items(), 1):
            svg = draw_svg(draw)
            name = f"{section}-{result.index.name}-{result.index.scale}-{number}"
            files[folder / f"{name}.svg"] = svg.encode()
            files[folder / f"{name}.png"] = draw_png(draw)
            figures.append((caption, svg))
        sections.append(
            {
                "title": title,
                "question": result.index.question,
                "split": result.index.split,
                "summary": summarize(result),
                "rows": [row_cells(row) for row in result.rows],
                "claims": claim_rows(result),
                "figures": figures,
            }
        )
    comparisons = []
    for number, comparison in enumerate(rivals, 1):
        draw = draw_loss_against_flops(comparison)
        name = f"0-rivals-{comparison.scale}-{number}"
        files[folder / f"{name}.svg"] = (svg := draw_svg(draw)).encode()
        files[folder / f"{name}.png"] = draw_png(draw)
        comparisons.append((comparison, svg))
    page = render_page(
        Path(__file__).parent / "study_report.html.j2",
        studies=sections,
        comparisons=comparisons,
        headings=HEADINGS,
        interpolated_headings=INTERPOLATED_HEADINGS,
        source=read_claims()["source"],
    )
    write_files({**files, path: page.encode()})
    for file in folder.glob("*"):
        if _FIGURE.fullmatch(file.name) and file not in files:
            file.unlink()


def summarize(result: StudyResult) -> list[str]:
    """The study in sentences that its numbers support, and no others."""
    done = [row for row in result.rows if row.is_finite]
    missing = sum(len(row.missing) for row in result.rows)
    total = len(result.index.runs)
    tokens = max(row.tokens for row in result.rows)
    sentences = [
        f"{total - missing} of {total} runs are finished, of {tokens:,} tokens each at most."
    ]
    for row in result.rows:
        for seed, said in row.failed.items():
            sentences.append(f"Failed: {row.variant} with seed {seed}, {said}.")
    if not done:
        return sentences
    whole = [row for row in done if not row.diverged]
    if whole:
        best = min(whole, key=lambda row: row.perplexity.mean if row.perplexity else math.inf)
        assert best.perplexity is not None
        among = "" if len(whole) == len(done) else " among variants no run of which diverged"
        sentences.append(
            f"The lowest mean perplexity{among} is that of {best.variant}, {best.perplexity.mean:.2f}; "
            "this alone does not set it apart from the next."
        )
    by = (
        "by Holm's test over all variants (the 95% intervals are not corrected)"
        if is_family(result.index)
        else "by an interval that excludes zero"
    )
    for verdict, words in (
        ("better", "Better than {}, " + by),
        ("worse", "Worse than {}, " + by),
        (NO_DIFFERENCE, "Not distinguishable from {}"),
        (ONE_SEED, "Undecided against {}, as one pair of runs gives no interval"),
        (NOT_FINITE, "Undecided against {}, as a perplexity is not finite"),
        (A_RUN_DIVERGED, "Undecided against {}, as a run diverged"),
    ):
        rows = [row for row in result.rows if row.verdict == verdict]
        for baseline in dict.fromkeys(row.baseline for row in rows):
            named = "; ".join(
                f"{row.variant} {change_with_interval(row.difference)}".rstrip() + _pairs(row)
                for row in rows
                if row.baseline == baseline
            )
            sentences.append(f"{words.format(baseline)}: {named}.")
    alone = [row.variant for row in done if not row.is_baseline and row.verdict is None]
    if alone:
        sentences.append(
            f"Not compared yet, without a baseline of the same seed: {'; '.join(alone)}."
        )
    if result.index.tunes:
        for placement, row in tuned_rows(result).items():
            so_far = " so far" if missing else ""
            sentences.append(
                f"Best{so_far} for {result.tuned_kind} {placement} on the validation split: {row.variant}."
            )
        for placement, name, value in short_axes(result):
            sentences.append(
                f"With {result.tuned_kind} {placement}, {name} {value:g} is at the end of what was tried: "
                "beyond it may be better."
            )
    if result.index.name == "scale":
        for cost, label in SCALING_AXES.items():
            for kind, fit in scaling_fits(result, cost).items():
                falls = "falls" if fit.high < 0 else "is not shown to fall"
                sentences.append(
                    f"Loss of {kind} {falls} with {label}: to the power {fit.exponent:.4f} "
                    f"(95% interval {fit.low:.4f} to {fit.high:.4f})."
                )
    return sentences


def _pairs(row: VariantRow) -> str:
    """How many seeds a change rests on where some are missing or failed."""
    return fewer_seeds(row.difference.count if row.difference else 0, row)


def change_with_interval(difference: Difference | None) -> str:
    """Against the baseline; empty for a baseline itself."""
    if difference is None:
        return ""
    if math.isnan(difference.mean):
        return "by no finite amount"
    if math.isnan(difference.low):
        return f"{difference.mean:+.1%}"
    return f"{difference.mean:+.1%} [{difference.low:+.1%}, {difference.high:+.1%}]"


def row_cells(row: VariantRow) -> list[tuple[str, Any]]:
    """A row of the table under HEADINGS: text and what it is sorted by; empty where there is none."""
    name = row.variant if row.match is None else f"{row.variant} ({row.match:.3f})"
    runs = f"{len(row.perplexities)} of {row.seeds}"
    if row.failed:
        runs += f", {len(row.failed)} failed"
    baseline_cell = ("–", "") if row.is_baseline else (row.baseline, row.baseline)
    row_text: list[tuple[str, Any]] = [
        (name, row.variant),
        (format_count(row.parameters), row.parameters),
        (format_flops(row.train_flops_per_token, ""), row.train_flops_per_token),
    ]
    verdict = (f"{row.verdict}{_pairs(row)}", row.verdict) if row.verdict else ("–", "")
    if row.perplexity is None:
        row_text += [("–", ""), ("–", ""), (runs, 0), baseline_cell]
        return [*row_text, ("–", ""), ("–", ""), verdict, *[("–", "")] * 3]
    several = row.perplexity.count > 1
    assert row.seconds is not None
    assert row.tokens_per_second is not None
    assert row.memory_bytes is not None
    row_text += [
        (f"{row.perplexity.mean:.2f}", row.perplexity.mean),
        (f"{row.perplexity.std:.2f}", row.perplexity.std) if several else ("–", ""),
        (runs, len(row.perplexities)),
        baseline_cell,
    ]
    change = row.difference
    if change is None:
        row_text += [("baseline" if row.is_baseline else "–", ""), ("–", ""), verdict]
    else:
        between = f"[{change.low:+.1%}, {change.high:+.1%}]"
        known = not math.isnan(change.low)
        row_text += [
            (f"{change.mean:+.1%}", change.mean) if not math.isnan(change.mean) else ("–", ""),
            (between, change.low) if known else ("–", ""),
            verdict,
        ]
    speed = format_count(row.tokens_per_second.mean)
    if several:
        speed += f" ± {format_count(row.tokens_per_second.std)}"
    return [
        *row_text,
        (speed, row.tokens_per_second.mean),
        (format_seconds(row.seconds), row.seconds),
        (format_bytes(row.memory_bytes), row.memory_bytes),
    ]


def claim_rows(result: StudyResult) -> list[tuple[str, str, str, str]]:
    """Variant, what the paper says of it, what came of it here, and whether that agrees.

    Empty where the comparison is with another baseline than the claims are about.
    """
    declared = {variant.name: variant.baseline for variant in result.index.variants}
    if any(row.baseline != declared[row.variant] for row in result.rows):
        return []
    claims = read_claims().get(result.index.name, [])
    rows = {row.variant: row for row in result.rows}
    return [
        (claim["variant"], claim["text"], *_judge_claim(claim, rows.get(claim["variant"])))
        for claim in claims
    ]


def _judge_claim(claim: dict[str, Any], row: VariantRow | None) -> tuple[str, str]:
    """What came of a claim, and the verdict; there is no row where a grid is incomplete."""
    difference = None
    if row is not None:
        difference = row.time if claim.get("of") == "time" else row.difference
    if row is None or difference is None:
        return "not measured", "–"
    ours = change_with_interval(difference) + _pairs(row)
    if claim.get("of") == "time":
        # The interval covers seeds; that dense ran in a slower hour than LPA it cannot know.
        return ours, "not judged: runs shared the machine; lpa bench measures in turns"
    found = row.verdict
    if found in ("better", "worse"):
        same = "the same" if found == claim["direction"] else "the opposite"
        verdict = f"{same} direction, at this size and length"
    else:
        verdict = f"not settled: {found}"
    if "change" in claim and not math.isnan(difference.low) and found != A_RUN_DIVERGED:
        inside = difference.low <= claim["change"] <= difference.high
        verdict += f"; {claim['change']:+.0%} is {'in' if inside else 'out'}side the interval"
    return ours, verdict
