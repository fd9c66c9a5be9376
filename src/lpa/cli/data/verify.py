"""`lpa data verify`."""

from lpa.cli.parsing import Parser, add_data_argument, add_json_flag, to_json


def build_parser() -> Parser:
    parser = Parser(
        "data verify",
        description="Compare the shards and the tokenizer of a prepared data directory with its manifest.",
        examples="""\
  lpa data verify data
  lpa data verify data --json""",
    )
    add_data_argument(parser)
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.data.stats import verify_data
    from lpa.display import console
    from lpa.errors import UserError

    with console.stderr.status("reading"):
        problems = verify_data(arguments.data)
    if arguments.json:
        print(to_json({"problems": problems}))
        raise SystemExit(2 if problems else 0)
    if problems:
        raise UserError(f"data {arguments.data}: {'; '.join(problems)}")
    print(f"{arguments.data}: intact")
