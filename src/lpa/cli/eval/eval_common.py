"""What the commands share that score held-out text: its options, its progress, its results."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lpa.callbacks import StepCallback
from lpa.cli.parsing import Count, to_json


def add_split_argument(parser: Any) -> None:
    """Which split of prepared data."""
    parser.add_argument(
        "--split",
        type=str,
        help="the split of prepared data; by default test, or validation where there is no test split",
    )


def add_text_arguments(parser: Any) -> None:
    """Which held-out text, and how a model reads it."""
    parser.add_argument(
        "--data",
        nargs="+",
        type=str,
        required=True,
        help="prepared data directories, or text as `lpa prepare` takes it: files, directories or "
        "globs, with #boundary=line and the like",
    )
    add_split_argument(parser)
    parser.add_argument(
        "--mode",
        choices=["blocks", "sliding", "documents"],
        help="read windows that do not overlap, windows that overlap, or each document alone; by "
        "default sliding with --stride, else blocks",
    )
    parser.add_argument(
        "--seq-len",
        type=Count,
        help="tokens per window; by default the context of the model, if its config.json says",
    )
    parser.add_argument(
        "--stride",
        type=Count,
        help="the tokens from one window's start to the next; by default half the context",
    )
    parser.add_argument("--batch-size", type=Count, default=8, help="windows per forward pass")


def scoring_options(arguments: Any) -> dict[str, Any]:
    """The options that say which text is scored, in which windows, and on what."""
    names = ("split", "mode", "seq_len", "stride", "batch_size", "device", "dtype")
    return {name: arguments[name] for name in names}


def score_each_text(
    arguments: Any,
    models: list[Path],
    score: Callable[[str, StepCallback], Any],
    print_result: Callable[[Any], None],
) -> None:
    """Score each text of `--data` and print its result before the next is scored.

    With `--json` all results are printed at the end, as one object. Where a text is refused, these are the
    results of the texts before it.

    Args:
        models: all that read the texts.
        score: called with a text and a function to report progress with.
        print_result: called with what `score` returned, without `--json`.
    """
    from lpa.display import console
    from lpa.eval.loading import check_texts

    console.silence_transformers()
    sources = list(dict.fromkeys(arguments.data))
    if later := sources[1:]:  # the first is refused before anything is scored in any case
        check_texts(models, later, arguments.split)
    results = {}
    try:
        for source in sources:
            results[source] = score_with_bar(source, partial(score, source))
            if arguments.json:
                continue
            if len(sources) > 1:
                print(f"{source}:")
            print_result(results[source])
            sys.stdout.flush()
    finally:
        if arguments.json and results:
            by_source = {source: asdict(result) for source, result in results.items()}
            # For one text its result alone, as most have it.
            print(to_json(by_source if len(sources) > 1 else by_source[sources[0]]))


def score_with_bar(source: str, score: Callable[[StepCallback], Any]) -> Any:
    """The result of `score(report)`, with a progress bar that names the source."""
    from lpa.display import console

    with console.progress_display() as display:
        report = console.bar_per_task(display)
        return score(partial(report, f"scoring {Path(source).name}"))
