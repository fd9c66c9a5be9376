import io

import pytest
from rich.table import Table

from lpa.display.console import bar_per_task, progress_display, stderr, stdout
from lpa.display.escape import escape_unprintable

LITERAL = ["[bold]x[/nope]", "[/]", ":smile:", "$x$", "<b>", "100%", "{name}"]


@pytest.mark.parametrize("name", [*LITERAL, "red \x1b[31m", "\x9b2J", "bell \x07", "\u202eflow"])
def test_names_reach_the_terminal_as_they_are(name, monkeypatch):
    shown = escape_unprintable(name)
    assert (shown == name) == (name in LITERAL)
    screen = io.StringIO()
    console = stdout(width=120)
    console.file = screen
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    console.print(table)
    console.print(f"{name}: done")
    monkeypatch.setattr(stderr, "file", screen)
    with progress_display() as display:
        bar_per_task(display)(name, 1, 2)
    with stderr.status(name):
        pass
    assert screen.getvalue().count(shown) >= 4
    assert not set(screen.getvalue()) & {"\x9b", "\x07", "\u202e"}
    assert "\x1b[31m" not in screen.getvalue()


def test_a_table_is_as_wide_as_asked_for(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert stdout().width == 40
    assert stdout(width=120).width == 120
    monkeypatch.setenv("COLUMNS", "200")
    assert stdout(width=120).width == 200
