"""`lpa runs`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from lpa.cli.parsing import Parser, add_json_flag, to_json

if TYPE_CHECKING:
    from lpa.train.run_table import RunRow


def build_parser() -> Parser:
    from lpa.train.run_table import SORT_FIELDS

    parser = Parser(
        "runs",
        usage="lpa runs DIR [DIR …] [options]",
        description="Tabulate the runs below directories: the result of each finished run, and the "
        "progress of the others.",
        examples="""\
  lpa runs runs
  lpa runs runs --sort perplexity
  lpa runs runs/lpa runs/dense --json""",
    )
    parser.add_argument(
        "directories",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="a run directory, or a directory that contains some",
    )
    parser.add_argument(
        "--sort",
        choices=SORT_FIELDS,
        default="name",
        metavar="FIELD",
        help=f"the column to sort by, ascending: {', '.join(SORT_FIELDS)}",
    )
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from dataclasses import asdict

    from lpa.train.run_table import list_runs

    rows = list_runs(arguments.directories, sort=arguments.sort)
    if arguments.json:
        print(to_json({"runs": [asdict(row) for row in rows]}))
    else:
        _print_table(rows)


def _print_table(rows: "list[RunRow]") -> None:
    from lpa.display.console import new_table, stdout
    from lpa.display.units import format_count, format_duration

    def count(value: int | None) -> str:
        return "" if value is None else format_count(value)

    table = new_table(show_edge=False)
    table.add_column("run", overflow="fold", min_width=8)
    table.add_column("model", overflow="fold", min_width=9)
    for heading in ("params", "steps", "tokens", "loss", "ppl", "tok/s", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        rank = f" {row.rank}" if row.rank else ""
        table.add_row(
            row.name,
            f"{row.placement or ''}{rank}",
            count(row.parameters),
            count(row.steps),
            count(row.tokens),
            _cell(row.loss, "#.4g"),
            _format_perplexity(row.perplexity),
            "" if row.tokens_per_second is None else format_count(row.tokens_per_second),
            format_duration(row.seconds) if row.seconds and math.isfinite(row.seconds) else "",
        )
    console = stdout()
    console.print(table)
    for row in rows:
        if row.problem or row.state != "finished":
            state = "; ".join(filter(None, (row.state, row.problem)))
            console.print(f"{row.name}: {state}")


def _format_perplexity(value: float | None) -> str:
    """To two digits, and in units where the column would be too wide, as of a run that diverged."""
    from lpa.display.units import format_count

    if value is not None and 10_000 <= value < math.inf:
        return format_count(value)
    return _cell(value, ",.2f")


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
