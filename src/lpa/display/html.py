"""Self-contained HTML pages: one look for all, figures as SVG, nothing from a network."""

import io
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from lpa.display.escape import escape_unprintable
from lpa.storage.files import write_text_atomic

# By which a page is known again.
_GENERATOR_TAG = '<meta name="generator" content="lpa">'
# The same of a figure.
_CREATOR = "lpa"

# Apart for the color-blind too (Okabe & Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def write_html_page(path: Path, template: Path, **values: Any) -> None:
    """Write what `render_page` gives."""
    write_text_atomic(path, render_page(template, **values))


def render_page(template: Path, **values: Any) -> str:
    """Fill a template, which extends `base.html.j2`.

    Args:
        template: of the page's content.
        values: what the template names; a missing one is an error.
    """
    loader = jinja2.FileSystemLoader([template.parent, Path(__file__).parent])
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: escape_unprintable(value) if type(value) is str else value,
    )
    machine = f"{platform.processor() or platform.machine()}, {platform.system()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("lpa", "torch", "transformers"))
    page = environment.get_template(template.name)
    return page.render(machine=machine, versions=versions, generator=_GENERATOR_TAG, **values)


def is_html_page(path: Path) -> bool:
    """Whether a file is a page of `render_page`, so that a newer one may replace it."""
    return _begins_with(path, _GENERATOR_TAG)


def is_figure(path: Path) -> bool:
    """Whether a file is an SVG of `draw_svg`, so that a newer one may replace it."""
    return _begins_with(path, f"<dc:title>{_CREATOR}</dc:title>")


def _begins_with(path: Path, sign: str) -> bool:
    """Whether a sign is in the first lines of a file."""
    with open(path, "rb") as file:
        return sign.encode() in file.read(2000)


DrawFunction = Callable[[Any], None]


def draw_svg(draw: DrawFunction, size: tuple[float, float] = (7.5, 4.2)) -> str:
    """The SVG of what `draw` puts on a matplotlib figure; the same numbers give the same text.

    Args:
        draw: called with the figure.
        size: width and height in inches.
    """
    text = _draw(draw, size, "svg", metadata={"Date": None, "Creator": _CREATOR}).decode()
    return text[text.index("<svg") :]


def draw_png(draw: DrawFunction, size: tuple[float, float] = (7.5, 4.2)) -> bytes:
    """The PNG of the same."""
    return _draw(draw, size, "png", dpi=150)


def _draw(draw: DrawFunction, size: tuple[float, float], kind: str, **options: Any) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    with rc_context(
        {
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "lpa",
            "font.family": "sans-serif",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
        }
    ):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        # Names of users are no formulas, whatever dollars they hold. Labels of ticks, whose powers are
        # formulas, have no text before the figure is rendered.
        for text in figure.findobj(Text):
            if text.get_text():
                text.set_text(escape_unprintable(text.get_text()))
                text.set_parse_math(False)
        file = io.BytesIO()
        figure.savefig(file, format=kind, **options)
    return file.getvalue()
