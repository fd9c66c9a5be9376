"""`lpa eval compare`."""

from pathlib import Path

from lpa.cli.eval.eval_common import (
    add_text_arguments,
    print_json,
    score_each_text,
    scoring_options,
)
from lpa.cli.parsing import Parser, add_device_argument, add_dtype_argument, add_json_flag


def build_parser() -> Parser:
    parser = Parser(
        "eval compare",
        description="Decide whether one model predicts a text better than another. The command prints "
        "the paired difference with a 95% interval, and a verdict.",
        examples="""\
  lpa eval compare runs/lpa runs/dense --data data
  lpa eval compare runs/lpa path/to/hf-model --data "test.txt#boundary=line\"""",
    )
    for name in ("a", "b"):
        parser.add_argument(
            name,
            type=Path,
            metavar=name.upper(),
            help="a run directory or a Hugging Face directory",
        )
    add_device_argument(parser)
    add_dtype_argument(parser)
    add_text_arguments(parser)
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.display.units import format_count
    from lpa.eval.compare import compare

    results = score_each_text(
        arguments.data,
        lambda source, on_progress: compare(
            arguments.a,
            arguments.b,
            source,
            **scoring_options(arguments),
            on_progress=on_progress,
        ),
    )
    if arguments.json:
        print_json(results)
        return
    for source, result in results.items():
        if len(results) > 1:
            print(f"{source}:")
        for path, one in ((arguments.a, result.a), (arguments.b, result.b)):
            print(
                f"{path}: perplexity {one.perplexity:.2f} ± {one.standard_error:.2f}, "
                f"{one.bits_per_byte:.4f} bits per byte, {format_count(one.tokens)} tokens"
            )
        print(
            f"{result.to_sentence(str(arguments.a), str(arguments.b))}; "
            f"bootstrap over {result.parts} {result.a.resampling_unit}"
        )
