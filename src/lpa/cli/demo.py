"""`lpa demo`."""

import itertools
from dataclasses import asdict
from pathlib import Path

from lpa.cli.parsing import Count, Parser, Seed, add_json_flag, add_overwrite_flag, to_json
from lpa.cli.process import exit_with_error


def build_parser() -> Parser:
    parser = Parser(
        "demo",
        description="Train the dense Transformer and LPA side by side on a bundled corpus and compare "
        "them. The command takes a few minutes on two CPU cores.",
        examples="""\
  lpa demo
  lpa demo --out runs/longer --steps 400
  lpa demo --out runs/other --seed 1 --json""",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the directory to write; by default the first free of runs/demo, runs/demo-2, …",
    )
    parser.add_argument("--steps", type=Count, default=300, help="training steps of 2,048 tokens")
    parser.add_argument(
        "--seed", type=Seed, default=0, help="the seed of weights, data order and samples"
    )
    add_overwrite_flag(parser)
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)
    if arguments.overwrite and arguments.out is None:
        exit_with_error("--overwrite: works only with --out")

    from lpa.display import console
    from lpa.study.demo.demo import run_demo
    from lpa.study.demo.demo_report import TABLE_ROWS, row_cells

    console.silence_transformers()
    out = arguments.out or _free_directory()
    result = run_demo(
        out, steps=arguments.steps, seed=arguments.seed, overwrite=arguments.overwrite
    )
    figures = {name: asdict(value) for name, value in result.figures.items()}
    if arguments.json:
        written = {"out": str(out), "report": str(result.report), "samples": result.samples}
        print(to_json(figures | written))
        return

    table = console.new_table(title="dense Transformer and LPA, same data, seed and steps")
    table.add_column("")
    for heading in ("dense", "LPA", "LPA/dense"):
        table.add_column(heading, justify="right")
    for key, label, _ in TABLE_ROWS:
        table.add_row(label, *row_cells(key, figures))
    stdout = console.stdout()
    stdout.print(table)
    for name, sample in result.samples.items():
        stdout.print(f"\n{name} continues:", style="bold")
        stdout.print(sample)
    stdout.print(f"\nruns    {out / 'dense'}, {out / 'lpa'}", soft_wrap=True)
    stdout.print(f"report  {result.report}", soft_wrap=True)


def _free_directory() -> Path:
    candidates = (Path("runs/demo" if n == 1 else f"runs/demo-{n}") for n in itertools.count(1))
    return next(path for path in candidates if not path.exists())
