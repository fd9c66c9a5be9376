"""`lpa eval compare`."""

from functools import partial
from pathlib import Path
from typing import Any

from lpa.cli.eval.eval_common import add_text_arguments, score_each_text, scoring_options
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

    from lpa.eval.compare import compare

    score_each_text(
        arguments,
        [arguments.a, arguments.b],
        lambda source, on_progress: compare(
            arguments.a,
            arguments.b,
            source,
            **scoring_options(arguments),
            on_progress=on_progress,
        ),
        partial(_print, arguments.a, arguments.b),
    )


def _print(a: Path, b: Path, result: Any) -> None:
    from lpa.display.units import format_count

    for path, one in ((a, result.a), (b, result.b)):
        print(
            f"{path}: perplexity {one.perplexity:.2f} ± {one.standard_error:.2f}, "
            f"{one.bits_per_byte:.4f} bits per byte, {format_count(one.tokens)} tokens"
        )
    print(
        f"{result.to_sentence(str(a), str(b))}; "
        f"bootstrap over {result.parts} {result.a.resampling_unit}"
    )
