"""The page of an analysis."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from lpa.display.html import COLORS, draw_svg, write_html_page


def write_analysis_page(path: Path, analysis: dict[str, Any]) -> None:
    """Write the page from the contents of `analysis.json`."""
    figures = [("Singular values", draw_svg(lambda f: _spectra(f, analysis["spectra"])))]
    if analysis["heads"]:
        figures.append(("Attention heads", draw_svg(lambda f: _heads(f, analysis["heads"]))))
    if analysis["truncations"]:
        size = (7.5, 2.2 + 0.25 * len(_layers(analysis["truncations"])))
        figures.append(
            ("Loss after truncation, by block", draw_svg(lambda f: _sublayers(f, analysis)))
        )
        figures.append(
            (
                "Loss after truncation, by projection",
                draw_svg(lambda f: _truncations(f, analysis["truncations"]), size),
            )
        )
    write_html_page(
        path,
        Path(__file__).parent / "analysis_report.html.j2",
        analysis=analysis,
        figures=figures,
        ranks=_rank_table(analysis["spectra"]),
        sublayers=[
            truncation
            for truncation in analysis["truncations"] or []
            if truncation["layer"] is None
        ],
    )


def _group_by_projection(
    spectra: list[dict[str, Any]],
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The spectra of all layers by sublayer and name."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for spectrum in spectra:
        groups[spectrum["sublayer"], spectrum["name"]].append(spectrum)
    return groups


def _rank_table(spectra: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per projection: means over layers."""
    return [
        {
            "sublayer": sublayer,
            "name": name,
            "shape": _distinct(" × ".join(map(str, spectrum["shape"])) for spectrum in group),
            "rank": _distinct(spectrum["rank"] or "dense" for spectrum in group),
            **{
                key: float(np.mean([spectrum[key] for spectrum in group]))
                for key in ("entropy_rank", "stable_rank")
            },
        }
        for (sublayer, name), group in _group_by_projection(spectra).items()
    ]


def _distinct(values: Iterable[int | str]) -> str:
    """What the layers have, each once; of more than three ranks the range."""
    found = list(dict.fromkeys(values))
    numbers = sorted(value for value in found if isinstance(value, int))
    if len(numbers) > 3:
        others = [value for value in found if not isinstance(value, int)]
        found = [f"{numbers[0]} to {numbers[-1]}", *others]
    return ", ".join(map(str, found))


def _spectra(figure: Any, spectra: list[dict[str, Any]]) -> None:
    """One panel per block, a line per projection: the mean over layers, their range shaded."""
    panels = figure.subplots(1, 2, sharey=True)
    groups, colors = _group_by_projection(spectra), cycle(COLORS)
    for sublayer, axes in zip(("attention", "ffn"), panels, strict=True):
        for name, group in [(n, g) for (s, n), g in groups.items() if s == sublayer]:
            length = min(len(spectrum["singular_values"]) for spectrum in group)
            values = np.array([s["singular_values"][:length] for s in group])
            values = np.maximum(values / np.maximum(values[:, :1], 1e-30), 1e-6)
            positions, color = np.arange(1, length + 1), next(colors)
            axes.plot(positions, values.mean(axis=0), label=name, color=color)
            axes.fill_between(
                positions,
                values.min(axis=0),
                values.max(axis=0),
                color=color,
                alpha=0.15,
                linewidth=0,
            )
        axes.set_yscale("log")
        axes.set_xlabel(f"{sublayer}: number of the singular value")
        if axes.has_data():
            axes.legend()
    panels[0].set_ylabel("singular value / largest")


def _heads(figure: Any, heads: list[dict[str, Any]]) -> None:
    """Two maps of layers and heads."""
    shape = [1 + max(head[axis] for head in heads) for axis in ("layer", "head")]
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("relative_entropy", "distance"),
        ("entropy / its most", "distance (tokens)"),
        strict=True,
    ):
        grid = np.full(shape, np.nan)  # layers without attention stay blank
        for head in heads:
            grid[head["layer"], head["head"]] = head[key]
        # From the least to the most there is: heads of a model that has hardly trained differ by little.
        image = axes.imshow(grid, aspect="auto", cmap="viridis")
        axes.set(xlabel="head", ylabel="layer", title=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes)


def _sublayers(figure: Any, analysis: dict[str, Any]) -> None:
    """Perplexity after all projections of a block were truncated, against the rank."""
    axes = figure.subplots()
    for sublayer, color in zip(("attention", "ffn"), COLORS, strict=False):
        points = [(c["rank"], c["loss"]) for c in analysis["truncations"] if c["name"] == sublayer]
        if points:
            ranks, losses = zip(*points, strict=True)
            axes.plot(ranks, np.exp(losses), marker="o", label=sublayer, color=color)
    axes.axhline(np.exp(analysis["loss"]), color="#666", linestyle="--", label="whole model")
    ranks_present = sorted({truncation["rank"] for truncation in analysis["truncations"]})
    axes.set(xlabel="rank that is left", ylabel="perplexity", yscale="log", xscale="log")
    axes.set_xticks(ranks_present, [str(rank) for rank in ranks_present])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    marks = np.geomspace(low, high, 6)[1:-1]
    axes.set_yticks(marks, [f"{mark:.3g}" if mark < 1000 else f"{mark:.0f}" for mark in marks])
    axes.legend()


def _layers(truncations: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
    """Layer, sublayer and name of each projection that was truncated alone."""
    return list(dict.fromkeys(_projection_of(c) for c in truncations if c["layer"] is not None))


def _projection_of(truncation: dict[str, Any]) -> tuple[int, str, str]:
    return truncation["layer"], truncation["sublayer"], truncation["name"]


def _truncations(figure: Any, truncations: list[dict[str, Any]]) -> None:
    """A map of projections and ranks: how much the loss rises when this one alone is truncated."""
    rows, ranks = _layers(truncations), sorted({truncation["rank"] for truncation in truncations})
    grid = np.full((len(rows), len(ranks)), np.nan)
    for truncation in truncations:
        if truncation["layer"] is not None:
            row = rows.index(_projection_of(truncation))
            grid[row, ranks.index(truncation["rank"])] = truncation["loss_increase"]
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", cmap="magma_r")
    axes.set_yticks(range(len(rows)), [" ".join(map(str, row)) for row in rows], fontsize=8)
    axes.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
    axes.set_xlabel("rank that is left")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="rise of the loss (nats per token)")
