"""Pages in a real browser, at the width of a window or of a phone."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

# A window is at least 500 pixels wide, a frame in it is as wide as asked for.
_FRAME = """<!doctype html><body style="margin:0">
<iframe style="width:{width}px;height:{height}px;border:0" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const right = node => node.getBoundingClientRect().right;
  const figures = [...page.querySelectorAll("svg")];
  document.body.dataset.seen = JSON.stringify({{
    overflow: root.scrollWidth - root.clientWidth,
    outside: [...page.querySelectorAll("p, h1, h2, h3, li, svg, .wide, figure")]
      .filter(node => right(node) > root.clientWidth).map(node => node.outerHTML.slice(0, 80)),
    body: page.body.clientWidth - 32,
    figures: figures.map(svg => svg.getBoundingClientRect().width),
    tables: [...page.querySelectorAll("table")].map(table =>
      [table.scrollWidth, table.parentElement.clientWidth]),
  }});
}});
</script></body>
"""


def layout_of(
    page: Path, width: int, folder: Path, *, screenshot: Path | None = None
) -> dict[str, Any]:
    """What lies where on a page that is shown in so many pixels.

    Returns:
        `overflow`, pixels by which the page is wider than it is shown; `outside`, elements that reach beyond
        its edge; `body`, the width of its text; `figures`, their widths; `tables`, width and room of each.
    """
    assert BROWSER
    frame = folder / f"frame-{width}.html"
    text = html.escape(page.read_text(), quote=True)
    frame.write_text(_FRAME.format(width=width, height=2400, page=text))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={width},2400", f"--user-data-dir={folder / 'profile'}"]
    if screenshot:
        shoot = [*command, f"--screenshot={screenshot}", frame.as_uri()]
        subprocess.run(shoot, check=True, capture_output=True, timeout=120)
    shown = subprocess.run(
        [*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120
    )
    seen = re.search(r'data-seen="([^"]*)"', shown.stdout)
    assert seen, shown.stderr
    found: dict[str, Any] = json.loads(html.unescape(seen[1]))
    return found
