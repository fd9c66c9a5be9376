"""`lpa prepare`."""

import time
from dataclasses import asdict

from lpa.cli.parsing import (
    NumberFromZero,
    Parser,
    VocabSize,
    Workers,
    add_output_arguments,
    to_json,
)


def build_parser() -> Parser:
    parser = Parser(
        "prepare",
        description="Turn text into a prepared data directory: a tokenizer, token shards and a manifest.",
        examples="""\
  lpa prepare train.txt --validation valid.txt --test test.txt --vocab-size 4096 --out data
  lpa prepare part-*.jsonl.gz --column text --tokenizer path/to/tokenizer --out data
  lpa prepare book.txt --boundary blank --validation-fraction 0.05 --vocab-size 8192 --out data""",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        type=str,
        metavar="SOURCE",
        help="files, directories or globs of .txt, .jsonl, .json or .csv, also with .gz or .zst, of .parquet "
        "or .arrow, or hf:NAME; #key=value,… sets boundary, column, weight, errors, name or split of one",
    )
    parser.add_argument("--vocab-size", type=VocabSize, help="train a byte-level BPE of this size")
    parser.add_argument(
        "--tokenizer",
        type=str,
        help="use an existing tokenizer: a directory, a tokenizer.json, a SentencePiece .model or a "
        "name on the hub",
    )
    parser.add_argument(
        "--chat-template",
        choices=["chatml"],
        help="give the tokenizer that is trained this template of conversations and its special tokens",
    )
    parser.add_argument(
        "--validation", nargs="+", type=str, default=[], help="sources of the validation split"
    )
    parser.add_argument("--test", nargs="+", type=str, default=[], help="sources of the test split")
    parser.add_argument(
        "--validation-fraction",
        type=NumberFromZero,
        help="the fraction of SOURCE to hold out for validation; by default 0.01, or 0 with --validation",
    )
    parser.add_argument(
        "--test-fraction",
        type=NumberFromZero,
        help="the fraction of SOURCE to hold out for the test; by default 0",
    )
    parser.add_argument(
        "--boundary",
        choices=["file", "blank", "line"],
        default="file",
        help="where a document of a text file ends: with the file, at a blank line, with each line",
    )
    parser.add_argument(
        "--column",
        type=str,
        default="text",
        help="the field that holds the text, where documents are rows (jsonl, csv, parquet, arrow)",
    )
    parser.add_argument(
        "--errors",
        choices=["strict", "replace"],
        default="strict",
        help="how to read bytes that are not UTF-8: refuse the file, or replace them by U+FFFD",
    )
    parser.add_argument(
        "--deduplicate",
        action="store_true",
        help="leave out training documents that equal an earlier one",
    )
    parser.add_argument(
        "--parse-special-tokens",
        action="store_true",
        help="encode text that spells a special token, such as <|endoftext|>, as that token, not as "
        "plain text",
    )
    parser.add_argument(
        "--workers",
        type=Workers,
        help="the number of processes that encode; by default one per core",
    )
    add_output_arguments(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.data import prepare
    from lpa.data.sources.listing import format_left_out
    from lpa.display import console
    from lpa.display.units import format_count

    with console.progress_display() as display:
        # What is being done -> its bar, and when it began.
        stages: dict[str, tuple[console.TaskID, float]] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in stages:
                for finished, _ in stages.values():
                    display.update(finished, total=1, completed=1)
                bar = display.add_task(what, total=total or None, status="")
                stages[what] = bar, time.monotonic()
            bar, started = stages[what]
            rate = done / max(time.monotonic() - started, 1e-3) / 1e6
            display.update(bar, completed=done, status=f"{rate:.1f} MB/s" if done else "")

        manifest = prepare(
            arguments.sources,
            arguments.out,
            vocab_size=arguments.vocab_size,
            tokenizer=arguments.tokenizer,
            chat_template=arguments.chat_template,
            validation=arguments.validation,
            test=arguments.test,
            validation_fraction=arguments.validation_fraction,
            test_fraction=arguments.test_fraction,
            boundary=arguments.boundary,
            column=arguments.column,
            errors=arguments.errors,
            deduplicate=arguments.deduplicate,
            parse_special_tokens=arguments.parse_special_tokens,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
            on_progress=on_progress,
        )
    if arguments.json:
        print(to_json(asdict(manifest)))
        return
    print(f"{arguments.out}: vocabulary of {format_count(manifest.vocab_size)}")
    for name, split in manifest.splits.items():
        tokens, documents = format_count(split.tokens), format_count(split.documents)
        print(f"  {name:<11}{tokens:>8} tokens  {documents:>8} documents")
    if spelled := sum(split.special_tokens_in_text for split in manifest.splits.values()):
        became = (
            "became that token"
            if manifest.parse_special_tokens
            else "stayed text (--parse-special-tokens makes it that token)"
        )
        print(f"  {format_count(spelled)} times the text spells a special token; each {became}")
    for sources in manifest.source["sources"].values():
        for source in sources:
            if left_out := format_left_out(source["left_out"]):
                print(f"  left out: {left_out}")
