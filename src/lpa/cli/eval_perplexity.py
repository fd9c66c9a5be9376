"""`lpa eval perplexity`."""

import json
from dataclasses import asdict
from pathlib import Path

from lpa.cli.parsing import Parser, add_json_flag, add_model_arguments


def build_parser() -> Parser:
    parser = Parser(
        "eval perplexity",
        description="Perplexity of a model on held-out text: per token, per word, and as bits per byte.",
        examples="""\
  lpa eval perplexity runs/lpa --data data
  lpa eval perplexity runs/lpa --data data --split validation
  lpa eval perplexity path/to/hf-model --data test.txt --json""",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--data", type=Path, required=True, help="a prepared data directory or a file of text"
    )
    parser.add_argument(
        "--split",
        type=str,
        help="of prepared data; by default test, or validation where there is none",
    )
    parser.add_argument("--context", type=int, help="tokens per window; by default the model's")
    parser.add_argument("--batch-size", type=int, default=8, help="windows per forward pass")
    add_json_flag(parser)
    return parser


def main(rest: list[str]) -> None:
    arguments = build_parser().parse_args(rest)

    from lpa import console
    from lpa.eval.perplexity import evaluate_perplexity

    console.hide_other_progress()
    with console.progress() as display:
        bar = display.add_task("scoring", total=None, status="tokens")
        result = evaluate_perplexity(
            arguments.model,
            arguments.data,
            split=arguments.split,
            context=arguments.context,
            batch_size=arguments.batch_size,
            device=arguments.device,
            report=lambda done, total: display.update(bar, completed=done, total=total),
        )
    if arguments.json:
        print(json.dumps(asdict(result)))
        return
    print(f"tokens           {result.tokens:>12,}")
    print(f"loss             {result.loss:>12.4f}")
    print(f"perplexity       {result.perplexity:>12.2f}")
    print(f"word perplexity  {result.word_perplexity:>12.2f}")
    print(f"bits per byte    {result.bits_per_byte:>12.4f}")
