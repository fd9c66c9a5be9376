"""`lpa convert merge`."""

from dataclasses import asdict
from pathlib import Path

from lpa.cli.parsing import Parser, add_output_arguments, to_json


def build_parser() -> Parser:
    parser = Parser(
        "convert merge",
        description="Merge each low-rank pair into one dense matrix and write a stock model, which any "
        "inference engine loads without this package: a Llama, or the class that the model kept when it "
        "was factorized. The parameters that low rank saved are back afterwards.",
        examples="""\
  lpa convert merge runs/lpa --out merged
  lpa convert merge path/to/lpa-model --out merged --json""",
    )
    parser.add_argument(
        "model", type=Path, metavar="RUN", help="a run directory or a Hugging Face directory"
    )
    add_output_arguments(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.convert.conversion import merge
    from lpa.display import console

    console.silence_transformers()
    with console.stderr.status("merging"):
        merged = merge(arguments.model, arguments.out, overwrite=arguments.overwrite)
    if arguments.json:
        print(to_json(asdict(merged)))
        return
    from lpa.display.units import format_count

    more = merged.parameters_merged - merged.parameters_low_rank
    print(
        f"{arguments.out}: a stock {merged.model_class} of {format_count(merged.parameters_merged)} "
        f"parameters, {format_count(more)} more than the low-rank model's "
        f"{format_count(merged.parameters_low_rank)}"
    )
