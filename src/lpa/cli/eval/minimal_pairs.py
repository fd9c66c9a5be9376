"""`lpa eval minimal-pairs`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lpa.cli.eval.eval_common import add_split_argument, score_with_bar
from lpa.cli.parsing import Count, Parser, add_json_flag, add_model_arguments, to_json


def build_parser() -> Parser:
    parser = Parser(
        "eval minimal-pairs",
        description="Count how often a model finds an English sentence likelier than the same one with a "
        "fault in its grammar. The pairs are made of held-out text, or read from a file such as those "
        "of BLiMP.",
        examples="""\
  lpa eval minimal-pairs runs/lpa --data data
  lpa eval minimal-pairs runs/lpa --data novel.txt --pairs-per-phenomenon 200
  lpa eval minimal-pairs path/to/hf-model --pairs blimp/anaphor_number_agreement.jsonl""",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--data",
        type=str,
        help="a prepared data directory, or English text as `lpa prepare` takes it: a file, a directory or "
        "a glob",
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        help="a JSON Lines file of pairs in place of --data, with sentence_good, sentence_bad and UID",
    )
    add_split_argument(parser)
    parser.add_argument(
        "--pairs-per-phenomenon",
        type=Count,
        default=1000,
        help="the most pairs of each phenomenon, chosen evenly from the text",
    )
    parser.add_argument("--batch-size", type=Count, default=32, help="sentences per forward pass")
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.display import console
    from lpa.eval.minimal_pairs.evaluate import evaluate_minimal_pairs

    console.silence_transformers()
    result = score_with_bar(
        str(arguments.data or arguments.pairs),
        lambda on_progress: evaluate_minimal_pairs(
            arguments.model,
            arguments.data,
            pairs=arguments.pairs,
            split=arguments.split,
            pairs_per_phenomenon=arguments.pairs_per_phenomenon,
            batch_size=arguments.batch_size,
            device=arguments.device,
            dtype=arguments.dtype,
            on_progress=on_progress,
        ),
    )
    if arguments.json:
        print(to_json(asdict(result)))
    else:
        _print(result)


def _print(result: Any) -> None:
    for name, accuracy in result.by_phenomenon.items():
        print(f"{name:<28}{accuracy:>8.1%}   of {result.pairs[name]:,} pairs")
    print(f"{'mean':<28}{result.accuracy:>8.1%} ± {result.standard_error:.1%}; chance is 50%")
    if result.left_out:
        print(
            f"left out: {result.left_out:,} pairs with a sentence beyond the context of the model"
        )
