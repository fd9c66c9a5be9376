"""`lpa push`."""

from dataclasses import asdict
from pathlib import Path

from lpa.cli.parsing import Parser, add_json_flag, to_json


def build_parser() -> Parser:
    parser = Parser(
        "push",
        description="Send a model to the Hugging Face hub: weights, configuration, tokenizer, card and the "
        "code that opens it. Checkpoints, optimizer states and other files of the directory are not sent. "
        "Files of another model in the repository are deleted. Log in first: hf auth login.",
        examples="""\
  lpa push runs/lpa my-name/my-model --dry-run
  lpa push runs/lpa my-name/my-model --private""",
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run directory or a Hugging Face directory"
    )
    parser.add_argument("repo", type=str, metavar="REPO", help="NAME, or OWNER/NAME, on the hub")
    parser.add_argument(
        "--private", action="store_true", help="make a repository that only its owner sees"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files and their sizes, and send nothing"
    )
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.display import console
    from lpa.display.units import format_bytes
    from lpa.model.hub.push import planned_push, push

    console.silence_transformers()
    if arguments.dry_run:
        result = planned_push(arguments.model, arguments.repo)
    else:
        with console.stderr.status("sending"):
            result = push(arguments.model, arguments.repo, private=arguments.private)
    if arguments.json:
        print(to_json(asdict(result)))
        return
    for name, size in result.files.items():
        print(f"{format_bytes(size):>10}  {name}")
    total = f"{format_bytes(sum(result.files.values()))} in {len(result.files)} files"
    if result.left:
        print(f"stays here: {', '.join(result.left)}")
    if result.deleted:
        print(f"deleted there: {', '.join(result.deleted)}")
    print(
        f"{result.repo}: {total} would be sent" if result.url is None else f"{result.url}: {total}"
    )
