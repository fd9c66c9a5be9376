"""One self-contained HTML page: table, loss curves, samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lpa.display.html import draw_svg, write_html_page
from lpa.display.units import format_bytes, format_count, format_flops, format_seconds
from lpa.study.report.figures import loss_curves

# Key of the figures, label, and how to write the value.
TABLE_ROWS: list[tuple[str, str, Callable[[float], str]]] = [
    ("parameters", "parameters", format_count),
    ("train_flops_per_token", "training FLOPs per token", format_flops),
    ("tokens_per_second", "tokens/s", format_count),
    ("wall_seconds", "wall time", format_seconds),
    ("peak_memory_bytes", "peak memory", format_bytes),
    ("test_perplexity", "test perplexity per token", lambda value: f"{value:.2f}"),
    ("test_word_perplexity", "test perplexity per word", lambda value: f"{value:,.1f}"),
    ("test_bits_per_byte", "test bits per byte", lambda value: f"{value:.4f}"),
]


def row_cells(key: str, figures: dict[str, dict[str, float]]) -> list[str]:
    """One row of the table: dense, LPA, and their ratio."""
    format_value = next(format_value for name, _, format_value in TABLE_ROWS if name == key)
    dense, lpa = figures["dense"][key], figures["lpa"][key]
    return [format_value(dense), format_value(lpa), f"{lpa / dense:.3f}" if dense else "–"]


def write_demo_report(
    path: Path,
    *,
    figures: dict[str, dict[str, float]],
    curves: dict[str, list[dict[str, Any]]],
    samples: dict[str, str],
    settings: dict[str, Any],
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        figures: model name to the figures named in `TABLE_ROWS`.
        curves: model name to the records of its run.
        samples: model name to a continuation.
        settings: what the runs shared, as it should be read.
    """
    write_html_page(
        path,
        Path(__file__).parent / "demo_report.html.j2",
        rows=[(label, *row_cells(key, figures)) for key, label, _ in TABLE_ROWS],
        figure=draw_svg(lambda figure: loss_curves(figure, curves)),
        samples=samples,
        settings=settings,
    )
