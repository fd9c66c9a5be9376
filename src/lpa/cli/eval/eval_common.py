"""What the commands share that score held-out text: its options, its progress, its JSON."""

from collections.abc import Callable
from dataclasses import asdict
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
    sources: list[str], score: Callable[[str, StepCallback], Any]
) -> dict[str, Any]:
    """The result of `score(source, report)` for each text, with a progress bar for each."""
    from lpa.display import console

    console.silence_transformers()
    results = {}
    with console.progress_display() as display:
        report_each = console.bar_per_task(display)
        for source in sources:

            def on_progress(done: int, total: int, source: str = source) -> None:
                report_each(f"scoring {Path(source).name}", done, total)

            results[source] = score(source, on_progress)
    return results


def print_json(results: dict[str, Any]) -> None:
    """One object for one text, as most have it; else an object for each, by name."""
    by_source = {source: asdict(result) for source, result in results.items()}
    print(to_json(by_source if len(by_source) > 1 else next(iter(by_source.values()))))
