"""`lpa eval perplexity`."""

from typing import Any

from lpa.cli.eval.eval_common import add_text_arguments, score_each_text, scoring_options
from lpa.cli.parsing import Parser, add_json_flag, add_model_arguments


def build_parser() -> Parser:
    parser = Parser(
        "eval perplexity",
        description="Compute the perplexity of a model on held-out text: per token, per word, and as "
        "bits per byte, with a standard error by bootstrap.",
        examples="""\
  lpa eval perplexity runs/lpa --data data
  lpa eval perplexity runs/lpa --data data --split validation --stride 128
  lpa eval perplexity runs/lpa --data "articles.jsonl#column=body" --mode documents
  lpa eval perplexity path/to/hf-model --data test.txt other.txt --json""",
    )
    add_model_arguments(parser)
    add_text_arguments(parser)
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.eval.perplexity import evaluate_perplexity

    score_each_text(
        arguments,
        [arguments.model],
        lambda source, on_progress: evaluate_perplexity(
            arguments.model,
            source,
            **scoring_options(arguments),
            on_progress=on_progress,
        ),
        _print,
    )


def _print(result: Any) -> None:
    from lpa.display.units import format_count

    low, high = result.interval
    tokens, documents = format_count(result.tokens), format_count(result.documents)
    print(f"tokens           {tokens:>12}   in {documents} documents")
    print(f"loss             {result.loss:>12.4f}")
    print(
        f"perplexity       {result.perplexity:>12.2f} ± {result.standard_error:.2f}   "
        f"95% interval {low:.2f} to {high:.2f}, by bootstrap over {result.resampling_unit}"
    )
    print(f"word perplexity  {result.word_perplexity:>12.2f}")
    print(f"bits per byte    {result.bits_per_byte:>12.4f}")
    print(f"windows          {result.mode}, context {result.seq_len}, stride {result.stride}")
