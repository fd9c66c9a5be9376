"""`lpa bench`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpa.cli.parsing import (
    Count,
    Parser,
    Threads,
    add_device_argument,
    add_dtype_argument,
    add_json_flag,
    add_overwrite_flag,
    add_placement_argument,
    to_json,
)

if TYPE_CHECKING:
    from lpa.study.bench.benchmark import BenchResult, ModelMeasurements


def build_parser() -> Parser:
    parser = Parser(
        "bench",
        description="Train and run the dense model and low-rank models in turns on this machine. The "
        "result compares the time and memory that low rank saves here with the FLOPs that it "
        "saves.",
        examples="""\
  lpa bench nano
  lpa bench 130m --seq-len 256 --batch-size 4 --placement attention ffn all
  lpa bench paper-130m-s2 --rank 64 --compile --figure bench.svg --json""",
    )
    parser.add_argument("preset", type=str, metavar="PRESET", help="a named architecture")
    add_placement_argument(
        parser,
        "the low-rank models to measure beside the dense one: attention, ffn, all",
        nargs="+",
        default=["attention"],
    )
    parser.add_argument("--rank", type=Count, help="the rank of the low-rank projections")
    parser.add_argument("--seq-len", type=Count, default=256, help="tokens per sequence")
    parser.add_argument("--batch-size", type=Count, default=4, help="sequences per step")
    parser.add_argument(
        "--rounds",
        type=Count,
        default=5,
        help="how many times the models take turns, after the warmup",
    )
    parser.add_argument("--compile", action="store_true", help="compile each decoder layer")
    add_device_argument(parser)
    add_dtype_argument(parser)
    parser.add_argument(
        "--threads", type=Threads, default=0, help="CPU threads; 0 leaves the choice to torch"
    )
    parser.add_argument("--figure", type=Path, help="an SVG file to write")
    add_overwrite_flag(parser, "the file that --figure names")
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.display import console
    from lpa.study.bench.run_bench import run_bench

    with console.progress_display(transient=True) as display:
        result = run_bench(
            arguments.preset,
            placement=arguments.placement,
            rank=arguments.rank,
            seq_len=arguments.seq_len,
            batch_size=arguments.batch_size,
            rounds=arguments.rounds,
            compile=arguments.compile,
            device=arguments.device,
            dtype=arguments.dtype,
            threads=arguments.threads,
            figure=arguments.figure,
            overwrite=arguments.overwrite,
            on_progress=console.bar_per_task(display),
        )
    if arguments.json:
        print(to_json(_figures(result)))
        return
    _print(arguments.preset, result)


def _figures(result: "BenchResult") -> dict[str, Any]:
    """The result, with the verdict on each low-rank model, as `--json` prints it."""
    figures = asdict(result)
    for name, model in result.models.items():
        if name != "none":
            figures["models"][name]["verdict"] = model.verdict
    return figures


def _format_ratio(model: "ModelMeasurements") -> str:
    """Step time over the dense model's, with what rounds differ by where that is known and not nothing."""
    spread = model.step_ratio_half_iqr
    return f"{model.step_ratio:.3f}" + (f" ± {spread:.3f}" if spread > 0 else "")


def _print(preset: str, result: "BenchResult") -> None:
    from lpa.display.console import new_table, stdout
    from lpa.display.units import format_bytes, format_count, format_flops, format_seconds

    table = new_table(f"{preset}, dense and low-rank in turns")
    table.add_column("")
    for name in result.models:
        table.add_column("dense" if name == "none" else name, justify="right")
    models = list(result.models.values())
    rows = [
        ("step", [format_seconds(m.step_seconds) for m in models]),
        ("step / dense", [_format_ratio(m) for m in models]),
        ("FLOPs / dense", [f"{m.flops_ratio:.3f}" for m in models]),
        ("training tokens/s", [format_count(m.tokens_per_second) for m in models]),
        ("training FLOP/s", [format_flops(m.flops_per_second, "FLOP/s") for m in models]),
        (
            "peak memory",
            [format_bytes(m.peak_memory_bytes) if m.peak_memory_bytes else "" for m in models],
        ),
        ("prefill", [format_seconds(m.prefill_seconds) for m in models]),
    ]
    if any(m.compile_seconds for m in models):
        rows.append(("compiling", [format_seconds(m.compile_seconds) for m in models]))
    for cache in ("plain", "latent"):
        rates = [m.decode_tokens_per_second.get(cache) for m in models]
        rows.append(
            (
                f"decoding tokens/s, {cache} cache",
                [format_count(rate) if rate else "" for rate in rates],
            )
        )
    for label, cells in rows:
        table.add_row(label, *cells)
    console = stdout()
    console.print(table)
    for name, model in result.models.items():
        if name != "none":
            console.print(f"{name}: {model.verdict}")
    even = result.break_even_rank
    console.print(
        f"q_proj alone breaks even at rank {even['flops']:.0f} by FLOPs; of the ranks measured here, it is "
        f"faster than dense up to rank {even['measured']:.0f}",
        soft_wrap=True,
    )
