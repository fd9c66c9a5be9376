"""`lpa convert factorize`."""

from pathlib import Path
from typing import Any

from lpa.cli.parsing import Count, Parser, PositiveNumber, add_output_arguments, json_text


def build_parser() -> Parser:
    parser = Parser(
        "convert factorize",
        description="Cut the projections of a dense checkpoint to low rank. A Llama becomes an LPA model; "
        "any other decoder keeps its class, with low-rank pairs inside.",
        examples="""\
  lpa convert factorize path/to/llama --out cut --keep 0.5 --calibrate train.txt
  lpa convert factorize model.gguf --out cut --rank 128 --placement all
  lpa convert factorize path/to/gpt2 --out cut --budget parameters=0.8 --calibrate train.txt
  lpa convert factorize path/to/model --out cut --ranks ranks.yaml --projections 'experts.*proj$'""",
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a Hugging Face directory or a GGUF file"
    )
    parser.add_argument("--rank", type=Count, help="of every projection")
    parser.add_argument(
        "--keep",
        type=PositiveNumber,
        help="the share of each projection's break-even rank that it gets",
    )
    parser.add_argument(
        "--ranks",
        type=Path,
        metavar="FILE",
        help="JSON or YAML: name or regular expression to rank",
    )
    parser.add_argument(
        "--budget",
        type=str,
        help="parameters=SHARE, flops=SHARE or kv=SHARE of what the projections cost dense, spread over them",
    )
    parser.add_argument(
        "--spread", choices=["spectra", "loss"], default="spectra", help="what spreads the budget"
    )
    parser.add_argument(
        "--placement",
        choices=["attention", "ffn", "all"],
        default="attention",
        help="which projections",
    )
    parser.add_argument(
        "--projections",
        type=str,
        metavar="REGEX",
        help="which, by full name, instead of --placement",
    )
    parser.add_argument(
        "--cut",
        choices=["svd", "whitened", "updated"],
        help="by default whitened with --calibrate, svd without",
    )
    parser.add_argument(
        "--calibrate", type=str, metavar="TEXT", help="text like what the model will read"
    )
    parser.add_argument("--calibrate-tokens", type=Count, default=32768, help="how much of it")
    parser.add_argument(
        "--context", type=Count, help="tokens per window of it; by default up to 512"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, …")
    add_output_arguments(parser)
    return parser


def main(rest: list[str]) -> None:
    arguments = build_parser().parse_args(rest)

    from lpa import console
    from lpa.convert.factorize import Request, as_json, factorize_directory
    from lpa.convert.spread import Budget
    from lpa.train.machine import pick_device

    console.hide_other_progress()
    request = Request(
        placement=arguments.placement,
        projections=arguments.projections,
        rank=arguments.rank,
        keep=arguments.keep,
        ranks=None if arguments.ranks is None else _read_ranks(arguments.ranks),
        budget=None
        if arguments.budget is None
        else Budget.parse(arguments.budget, arguments.spread),
        cut=arguments.cut,
        calibrate=arguments.calibrate,
        tokens=arguments.calibrate_tokens,
        context=arguments.context,
    )
    with console.progress(transient=True) as display:
        figures = factorize_directory(
            arguments.model,
            arguments.out,
            request,
            device=str(pick_device(arguments.device)),
            overwrite=arguments.overwrite,
            report=console.bar_of_each(display),
        )
    if arguments.json:
        print(json_text(as_json(figures)))
        return
    _print(arguments.out, figures)


def _read_ranks(path: Path) -> dict[str, int | None]:
    from lpa.errors import UserError
    from lpa.records import read_yaml

    try:
        return read_yaml(path, dict[str, int | None])
    except UserError as error:
        raise UserError(f"--ranks {error}; expected a mapping of names to ranks") from error


def _print(out: Path, figures: Any) -> None:
    print(f"{out}: {figures.model_class}")
    for label, before, after in (
        ("parameters", figures.parameters_dense, figures.parameters),
        ("KV bytes/token", figures.kv_bytes_per_token_dense, figures.kv_bytes_per_token),
    ):
        print(f"{label:<16}{before:>14,} -> {after:>14,}   {after / before:.3f}")
    for kind, error in figures.relative_error.items():
        print(f"{'error of ' + kind:<28}{error:.4f}")
