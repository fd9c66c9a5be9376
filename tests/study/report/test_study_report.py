"""The report in a real browser, and what it says in words."""

import re
import subprocess

import pytest
from helpers.browser import BROWSER, layout_of

from lpa.errors import UserError
from lpa.study.report.study_report import write_report

pytestmark = [pytest.mark.xdist_group("study"), pytest.mark.slow]


# Sorts the first table by its second column, twice, and writes down what it saw.
PROBE = """
<script>
addEventListener("load", () => {
  const column = i => [...document.querySelector("table.sortable").tBodies[0].rows]
    .map(row => row.cells[i].dataset.key).join(",");
  const heading = document.querySelectorAll("table.sortable th")[1], seen = [];
  heading.click(); seen.push(column(1)); heading.click(); seen.push(column(1));
  const drawn = [...document.querySelectorAll("figure svg")].filter(svg =>
    svg.getBoundingClientRect().height > 100 && svg.querySelectorAll("path").length > 10);
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.body.dataset.seen = [...seen, drawn.length, wide].join(";");
});
</script>
"""


def test_one_directory_may_be_given_by_itself(tiny_study, tmp_path):
    several = write_report([tiny_study], out=tmp_path / "report.html")
    for directory in (tiny_study, str(tiny_study)):
        one = write_report(directory, out=str(tmp_path / "report.html"))
        assert one.page == several.page
        assert [study.index for study in one.studies] == [study.index for study in several.studies]


@pytest.fixture(scope="module")
def page(lpa, tiny_study, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    finished = lpa("report", tiny_study, "--out", out)
    assert finished.code == 0, finished.stderr
    assert "4 of 4 runs are finished" in finished.stdout
    return out


def test_the_page_stands_alone_and_its_figures_are_files_too(page):
    text = page.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text)
    figures = page.parent / "report-figures"
    names = {path.stem for path in figures.glob("*.svg")}
    assert names == {path.stem for path in figures.glob("*.png")}
    assert len(names) == text.count("<figure>") == 7  # three curves, four fronts
    assert "arXiv 2411.02063" in text


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_in_a_browser_figures_are_drawn_the_table_sorts_and_the_console_is_clean(page, tmp_path):
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    loaded = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom",
         probed.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    seen = re.search(r'data-seen="([^"]*)"', loaded.stdout)
    assert seen, loaded.stderr
    up, down, drawn, wide = seen[1].split(";")
    values = [int(value) for value in up.split(",")]
    assert values == sorted(values)
    assert values[0] < values[-1]
    assert [int(value) for value in down.split(",")] == values[::-1]
    assert drawn == "7"
    assert wide == "false"  # a narrow window scrolls tables, not the page
    assert "CONSOLE" not in loaded.stderr


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 1200, 390])
def test_nothing_runs_off_the_page(page, tmp_path, width):
    seen = layout_of(page, width, tmp_path)
    assert (seen["overflow"], seen["outside"]) == (0, [])
    assert set(seen["figures"]) == {seen["body"]}
    table, room = seen["tables"][0]
    assert table <= room or width < 1000  # on a phone it scrolls alone


def test_a_directory_without_a_study_is_named(lpa, tmp_path):
    finished = lpa("report", tmp_path)
    assert finished.code == 2
    assert f"DIR {tmp_path}: holds no study" in finished.stderr


def test_a_report_of_no_directory_is_refused():
    with pytest.raises(UserError, match="DIR: got nothing; expected the --out of `lpa study`"):
        write_report([])
