"""`lpa convert factorize`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lpa.cli.parsing import (
    Count,
    Parser,
    PositiveNumber,
    add_device_argument,
    add_output_arguments,
    to_json,
)


def build_parser() -> Parser:
    parser = Parser(
        "convert factorize",
        description="Truncate the projections of a dense checkpoint to low rank. A Llama becomes an LPA "
        "model. Any other decoder keeps its class, with low-rank pairs inside.",
        examples="""\
  lpa convert factorize path/to/llama --out cut --rank-fraction 0.5 --calibration-data train.txt
  lpa convert factorize model.gguf --out cut --rank 128 --placement all
  lpa convert factorize path/to/gpt2 --out cut --budget parameters=0.8 --calibration-data train.txt
  lpa convert factorize path/to/model --out cut --ranks ranks.yaml --projections 'experts.*proj$'""",
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a Hugging Face directory or a GGUF file"
    )
    parser.add_argument("--rank", type=Count, help="the rank of every projection")
    parser.add_argument(
        "--rank-fraction",
        type=PositiveNumber,
        help="the rank as a fraction of the break-even rank of each projection",
    )
    parser.add_argument(
        "--ranks",
        type=Path,
        metavar="FILE",
        help="a JSON or YAML file that maps names, or regular expressions, to ranks",
    )
    parser.add_argument(
        "--budget",
        type=str,
        help="parameters=FRACTION, flops=FRACTION or kv=FRACTION: the fraction of the dense cost that all "
        "projections may take together",
    )
    parser.add_argument(
        "--budget-criterion",
        choices=["spectra", "loss"],
        help="how the budget is divided: by singular values, which is the default, or by what each rank "
        "costs in loss",
    )
    parser.add_argument(
        "--placement",
        choices=["attention", "ffn", "all"],
        default="attention",
        help="which projections to truncate",
    )
    parser.add_argument(
        "--projections",
        type=str,
        metavar="REGEX",
        help="truncate the projections whose full name matches, instead of --placement",
    )
    parser.add_argument(
        "--method",
        choices=["svd", "svd-llm", "svd-llm-update"],
        help="how to truncate; by default svd-llm with --calibration-data, and svd without",
    )
    parser.add_argument(
        "--calibration-data",
        type=str,
        metavar="TEXT",
        help="text like that which the model will read",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=Count,
        help="how many tokens of the calibration data to use; by default 32768",
    )
    parser.add_argument(
        "--seq-len",
        type=Count,
        help="tokens per window of the calibration data; by default up to 512",
    )
    add_device_argument(parser)
    add_output_arguments(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.convert.conversion import factorize
    from lpa.display import console

    console.silence_transformers()
    with console.progress_display(transient=True) as display:
        summary = factorize(
            arguments.model,
            arguments.placement,
            arguments.rank,
            out=arguments.out,
            rank_fraction=arguments.rank_fraction,
            ranks=arguments.ranks,
            budget=arguments.budget,
            budget_criterion=arguments.budget_criterion,
            projections=arguments.projections,
            method=arguments.method,
            calibration_data=arguments.calibration_data,
            calibration_tokens=arguments.calibration_tokens,
            seq_len=arguments.seq_len,
            device=arguments.device,
            overwrite=arguments.overwrite,
            on_progress=console.bar_per_task(display),
        )
    if arguments.json:
        print(to_json(asdict(summary)))
        return
    _print(arguments.out, summary)


def _print(out: Path, summary: Any) -> None:
    from lpa.display.units import format_bytes, format_count

    print(f"{out}: {summary.model_class}")
    for label, unit, before, after in (
        ("parameters", format_count, summary.parameters_dense, summary.parameters),
        (
            "KV cache/token",
            format_bytes,
            summary.kv_bytes_per_token_dense,
            summary.kv_bytes_per_token,
        ),
    ):
        if before:  # a model without attention has no such cache
            print(f"{label:<16}{unit(before):>9} -> {unit(after):>9}   {after / before:.3f}")
    for kind, error in summary.relative_error.items():
        print(f"{'error of ' + kind:<28}{error:.4f}")
