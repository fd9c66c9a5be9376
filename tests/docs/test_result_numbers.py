"""Every table and every change with an interval of the pages of results, against the committed records."""

import re
import runpy
import tarfile
from pathlib import Path

import pytest

from lpa.display.html import draw_svg
from lpa.display.units import format_bytes, format_count, format_flops
from lpa.study.design.rival_costs import rival_costs
from lpa.study.report.rivals_section import compare_rivals, draw_loss_against_flops
from lpa.study.results.study_results import find_studies

# In one worker: they share what takes long to make.
pytestmark = pytest.mark.xdist_group("result numbers")

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "docs" / "records"
PAGE = ROOT / "docs" / "results" / "short-studies.md"
COMPARISON = ROOT / "docs" / "results.md"
FIGURE = ROOT / "docs" / "figures" / "rivals-pico.svg"
ARMS = ("dense", "LPA", "smaller dense", "all layers", "FFN", "GQA", "CoLA", "SLTrain")
CHANGE = re.compile(r"([+−-]\d+\.\d)% \[([+−-]\d+\.\d)%,\s+([+−-]\d+\.\d)%\]")
# Studies are compared with these too, by `--baseline`.
BASELINES = (
    None,
    "nowhere",
    "init=scaled, optimizer=muon, decay=factors, lr of factors=1",
)


def unpack(name, folder):
    with tarfile.open(RECORDS / f"{name}.tar.xz") as records:
        records.extractall(folder, filter="data")


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """All rows that scripts/study_tables prints of the records."""
    unpacked = tmp_path_factory.mktemp("records")
    unpack("studies", unpacked)
    directories = [unpacked / name for name in ("pico", "long", "nano")]
    table = runpy.run_path(str(ROOT / "scripts" / "study_tables"))["table"]
    return {
        line
        for baseline in BASELINES
        for result in find_studies(directories, baseline)
        for line in table(result).splitlines()
    }


def test_every_row_of_the_tables_is_what_the_records_give(printed):
    rows = [line for line in PAGE.read_text().splitlines() if re.search(r"\| \d of \d \|", line)]
    assert len(rows) > 90
    assert [row for row in rows if row not in printed] == []


def test_every_change_with_an_interval_in_the_text_is_one_of_the_records(printed):
    known = {CHANGE.search(row.replace("% | [", "% [")) for row in printed}
    known = {match.groups() for match in known if match}
    lines = PAGE.read_text().splitlines()
    text = "\n".join(line for line in lines if not re.search(r"\| \d of \d \|", line))
    found = [
        tuple(part.replace("−", "-") for part in match.groups()) for match in CHANGE.finditer(text)
    ]
    assert len(found) > 15
    assert [change for change in found if change not in known] == []


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    unpacked = tmp_path_factory.mktemp("contest")
    unpack("contest", unpacked)
    return sorted(
        path for path in unpacked.iterdir() if path.is_dir()
    )  # beside them, files of rates


def tables_of(text):
    """Each as its heading and its rows."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heading, _, *rows = block.splitlines()
        yield heading, rows


def test_every_row_of_the_comparison_is_what_the_records_give(contest):
    script = runpy.run_path(str(ROOT / "scripts" / "contest_tables"))
    given = {
        (heading, row)
        for table in script["tables"](contest)
        for heading, rows in tables_of(f"{table}\n")
        for row in rows
    }
    printed = [
        (heading, row)
        for heading, rows in tables_of(COMPARISON.read_text())
        for row in rows
        if row.split(" | ")[0].removeprefix("| ") in ARMS
        and "iB |" not in row  # costs, which are not of the records
    ]
    assert len(printed) >= 16
    assert len({heading for heading, _ in printed}) == 4  # two tunings and two comparisons
    assert [row for row in printed if row not in given] == []


def test_the_figure_of_the_comparison_is_what_the_records_give(contest):
    [comparison] = [
        found for found in compare_rivals(find_studies(contest)) if found.scale == "pico"
    ]
    assert draw_svg(draw_loss_against_flops(comparison)) == FIGURE.read_text()


def test_the_costs_of_the_comparison_are_what_the_plan_counts():
    counted = [
        f"| {rival.variant} | {format_count(rival.parameters)} "
        f"| {format_flops(rival.training_flops_per_token, '')} | {format_bytes(rival.optimizer_bytes)} "
        f"| {format_bytes(rival.kv_cache_bytes_per_token)} |"
        for rival in rival_costs("pico")[: len(ARMS)]
    ]
    page = COMPARISON.read_text()
    assert [row for row in counted if f"\n{row}" not in page] == []
