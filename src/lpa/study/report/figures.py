"""The figures of reports: each draws on a matplotlib figure that it is given."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from lpa.display.html import COLORS, DrawFunction
from lpa.study.results.statistics import PowerLaw, pareto_front
from lpa.study.results.study_results import StudyResult, VariantRow

Records = list[dict[str, Any]]

# What a curve is drawn against: key, label.
CURVE_AXES = {"tokens": "tokens", "flops": "training FLOPs", "seconds": "training time (s)"}

# What perplexity is weighed against: key, label.
COST_AXES = {
    "parameters": "parameters",
    "flops": "training FLOPs",
    "seconds": "wall time of a run (s)",
    "memory_bytes": "peak memory (bytes)",
}

# What the loss is fitted to: key, label.
SCALING_AXES = {
    "flops": "training FLOPs of models of growing size",
    "parameters": "parameters",
    "tokens": "training tokens of the largest model",
}

_TALL = (7.5, 5.0)

# With as many colors, enough to tell the variants of the largest grid apart.
_LINE_STYLES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
_MARKERS = "os^DvPX"


def study_figures(result: StudyResult) -> dict[str, DrawFunction]:
    """Caption -> what draws it, for all that the runs so far can show."""
    figures: dict[str, DrawFunction] = {}
    if any(any("validation_loss" in r for r in run) for c in result.curves.values() for run in c):
        for axis, label in CURVE_AXES.items():
            figures[f"Validation loss against {label}"] = _curves(result, axis)
    done = [row for row in result.rows if row.is_finite]
    if len(done) > 1:
        for cost, label in COST_AXES.items():
            figures[f"Perplexity against {label}"] = _pareto(done, cost)
    if result.index.name == "scale":
        for cost, label in SCALING_AXES.items():
            if scaling_fits(result, cost):
                figures[f"Loss against {label}, with fits"] = _scaling(result, cost)
    return figures


def loss_curves(figure: Any, curves: dict[str, Records]) -> None:
    """Draw training losses of single runs as thin lines, and validation losses as marked ones."""
    axes = figure.subplots()
    for (name, records), color in zip(curves.items(), COLORS, strict=False):
        for key, label, style in (
            ("loss", "training", {"linewidth": 1, "alpha": 0.55}),
            ("validation_loss", "validation", {"linewidth": 2, "marker": "o", "markersize": 4}),
        ):
            points = [(r["step"], r[key]) for r in records if key in r]
            axes.plot(*zip(*points, strict=True), label=f"{name}, {label}", color=color, **style)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.legend()


def scaling_fits(result: StudyResult, cost: str) -> dict[str, PowerLaw]:
    """Loss per token on held-out text as a power law of a cost, for dense and for LPA."""
    fits = {}
    for kind in ("dense", "LPA"):
        # Seeds of one model share what sets it apart from the law: they count as one point.
        losses = defaultdict(list)
        for x, loss in _loss_points(result, kind, cost):
            losses[x].append(loss)
        fit = PowerLaw.fit(list(losses), [float(np.mean(of_seeds)) for of_seeds in losses.values()])
        if fit:
            fits[kind] = fit
    return fits


def _loss_points(result: StudyResult, kind: str, cost: str) -> list[tuple[float, float]]:
    """Cost and loss of the models of one size where tokens vary, or of one length where the size does.

    Models of which a run diverged are left out: the seeds that survive are not those of a working model.
    """
    rows = [row for row in result.rows if row.variant.startswith(kind)]
    fixed = "parameters" if cost == "tokens" else "tokens"
    most = max((getattr(row, fixed) for row in rows), default=0)
    return [
        (float(getattr(row, cost)), float(np.log(perplexity)))
        for row in rows
        if getattr(row, fixed) == most and not row.diverged
        for perplexity in row.perplexities.values()
        if 1 < perplexity < np.inf  # whose loss has a logarithm
    ]


def line_style(number: int) -> dict[str, Any]:
    """Colors first, then the same with other lines."""
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": _LINE_STYLES[number // len(COLORS) % len(_LINE_STYLES)],
    }


def marker_style(number: int) -> dict[str, Any]:
    """Colors first, then the same with other markers."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": _MARKERS[number // len(COLORS) % len(_MARKERS)],
    }


def label_of(row: VariantRow) -> str:
    """A name for the legend, which leaves out what begins with an underscore."""
    name = f" {row.variant}" if row.variant.startswith("_") else row.variant
    if not row.diverged:
        return name
    return f"{name} ({row.diverged_runs} of {row.seeds} diverged)"


def _curves(result: StudyResult, axis: str) -> DrawFunction:
    """Mean over seeds, with the range of them shaded; the legend tells of seeds that diverged."""
    rows = {row.variant: row for row in result.rows}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, (name, runs) in enumerate(result.curves.items()):
            series = [_validation(run, axis, rows[name].train_flops_per_token) for run in runs]
            series = [points for points in series if points]
            if not series:
                continue
            # A run that is still at work must not cut the others short.
            length = max(map(len, series))
            x, y = np.moveaxis(np.array([s for s in series if len(s) == length]), 2, 0)
            style = line_style(number)
            axes.plot(x.mean(0), y.mean(0), label=label_of(rows[name]), linewidth=1.6, **style)
            axes.fill_between(x.mean(0), y.min(0), y.max(0), alpha=0.15, color=style["color"])
        axes.set_xlabel(CURVE_AXES[axis])
        axes.set_ylabel("validation loss (nats per token)")
        draw_legend(figure, axes)

    return draw


def _validation(run: Records, axis: str, flops: float) -> list[tuple[float, float]]:
    """(x, loss) of the evaluations, which fall between the training records that know tokens and time."""
    known = [(r["step"], r["tokens"], r["train_seconds"]) for r in run if "tokens" in r]
    if not known:
        return []
    steps, tokens, seconds = zip((0, 0, 0.0), *known, strict=True)
    values = {"tokens": tokens, "flops": [t * flops for t in tokens], "seconds": seconds}[axis]
    return [
        (float(np.interp(r["step"], steps, values)), float(r["validation_loss"]))
        for r in run
        if "validation_loss" in r
    ]


def _pareto(rows: Sequence[VariantRow], cost: str) -> DrawFunction:
    """The front is that of models of which no run diverged."""
    points = [(float(getattr(row, cost)), row.perplexity.mean) for row in rows if row.perplexity]
    stable = [point for row, point in zip(rows, points, strict=True) if not row.diverged]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        if front := pareto_front(stable):
            axes.step(
                *zip(*(stable[i] for i in front), strict=True),
                where="post", color="#888888", linewidth=1, label="front",
            )  # fmt: skip
        for number, (row, (x, y)) in enumerate(zip(rows, points, strict=True)):
            assert row.perplexity is not None
            error = row.perplexity.std if row.perplexity.count > 1 else 0.0
            style = marker_style(number)
            axes.errorbar(x, y, error, linestyle="", capsize=3, label=label_of(row), **style)
        axes.set_xlabel(COST_AXES[cost])
        axes.set_ylabel("perplexity, ± deviation over seeds")
        draw_legend(figure, axes)

    return draw


def _scaling(result: StudyResult, cost: str) -> DrawFunction:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for (kind, fit), color in zip(scaling_fits(result, cost).items(), COLORS, strict=False):
            points = _loss_points(result, kind, cost)
            axes.plot(*zip(*points, strict=True), "o", color=color, label=kind)
            x = np.geomspace(min(p[0] for p in points), max(p[0] for p in points), 50)
            label = f"{kind}: exponent {fit.exponent:.4f} [{fit.low:.4f}, {fit.high:.4f}]"
            axes.plot(x, fit.factor * x**fit.exponent, color=color, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(SCALING_AXES[cost])
        axes.set_ylabel("loss (nats per token)")
        axes.legend()

    return draw


def draw_legend(figure: Any, axes: Any) -> None:
    """Inside where a few names fit, below the axes where there are many."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= 7:
        axes.legend(fontsize="small")
    else:
        figure.set_size_inches(_TALL[0], _TALL[1] + 0.09 * len(labels))
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="x-small")
