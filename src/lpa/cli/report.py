"""`lpa report`."""

from pathlib import Path

from lpa.cli.parsing import Parser, add_json_flag, to_json


def build_parser() -> Parser:
    parser = Parser(
        "report",
        description="Show the results of studies, finished or not, on one page of tables, intervals and "
        "figures. The page needs no network and opens from a file.",
        examples="""\
  lpa report runs/studies
  lpa report runs/studies runs/more --out results.html
  lpa report runs/studies --baseline nowhere --out surplus.html
  lpa report runs/studies --json""",
    )
    parser.add_argument(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a directory that `lpa study --out` named",
    )
    parser.add_argument(
        "--baseline",
        type=str,
        metavar="VARIANT",
        help="compare with this variant in the studies that have it; the curve of rivals stays that of dense",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the page to write; by default report.html in the first DIR, and none with --json",
    )
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.display.escape import escape_unprintable
    from lpa.study.report.study_report import compare_studies, summarize, write_report

    if arguments.json and arguments.out is None:
        studies, rivals = compare_studies(arguments.directories, arguments.baseline)
    else:
        report = write_report(arguments.directories, baseline=arguments.baseline, out=arguments.out)
        studies, rivals = report.studies, report.rivals
    if arguments.json:
        tables = {"studies": [study.table() for study in studies]}
        print(to_json({**tables, "rivals": [comparison.to_dict() for comparison in rivals]}))
        return
    for study in studies:
        print(escape_unprintable(f"{study.title}: {' '.join(summarize(study))}"))
    print(escape_unprintable(f"report  {report.page}"))
