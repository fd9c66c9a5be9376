"""`lpa data stats`."""

from dataclasses import asdict

from lpa.cli.parsing import Parser, add_data_argument, add_json_flag, to_json


def build_parser() -> Parser:
    parser = Parser(
        "data stats",
        description="Show what a prepared data directory holds: documents, tokens, lengths, vocabulary "
        "use and duplicates.",
        examples="""\
  lpa data stats data
  lpa data stats data --json""",
    )
    add_data_argument(parser)
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.data.stats import data_stats
    from lpa.display import console
    from lpa.display.units import format_bytes, format_count

    with console.stderr.status("counting"):
        statistics = asdict(data_stats(arguments.data))
    if arguments.json:
        print(to_json(statistics))
        return
    for split, figures in statistics["splits"].items():
        print(f"{split}")
        lengths = figures.pop("lengths")
        for name, value in figures.items():
            in_units = format_bytes if name == "bytes" else format_count
            shown = in_units(value) if isinstance(value, int) else f"{value:.3f}"
            print(f"  {name.replace('_', ' '):<18}{shown:>12}")
        most = max(lengths.values())
        for smallest, count in lengths.items():
            bar = "█" * max(1, round(30 * count / most))
            print(f"  {format_count(smallest):>9}+ tokens {format_count(count):>12} {bar}")
    print(f"vocabulary of {format_count(statistics['vocab_size'])}")
