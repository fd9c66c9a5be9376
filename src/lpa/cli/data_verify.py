"""`lpa data verify`."""

from lpa.cli.parsing import Parser, add_data_argument, add_json_flag, json_text


def build_parser() -> Parser:
    parser = Parser(
        "data verify",
        description="Compare the checksums of a prepared data directory with its manifest.",
        examples="""\
  lpa data verify data
  lpa data verify data --json""",
    )
    add_data_argument(parser)
    add_json_flag(parser)
    return parser


def main(rest: list[str]) -> None:
    arguments = build_parser().parse_args(rest)

    from lpa import console
    from lpa.data.inspection import verify
    from lpa.errors import UserError

    with console.stderr.status("reading"):
        problems = verify(arguments.data)
    if arguments.json:
        print(json_text({"problems": problems}))
        raise SystemExit(2 if problems else 0)
    if problems:
        raise UserError(f"data {arguments.data}: {'; '.join(problems)}")
    print(f"{arguments.data}: intact")
