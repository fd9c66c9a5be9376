"""`lpa plan`."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lpa.cli.parsing import Count, Parser, VocabSize, add_json_flag, add_placement_argument, to_json
from lpa.cli.process import exit_with_error


def build_parser() -> Parser:
    parser = Parser(
        "plan",
        description="Compute what a model costs to train and to serve, beside its dense twin, before any "
        "weight exists.",
        examples="""\
  lpa plan 3b --seq-len 2048 --batch-size 4 --devices 8
  lpa plan runs/lpa --placement all --json
  lpa plan 130m --match params
  lpa plan nano --data data --recommend
  lpa plan 130m --rivals""",
    )
    parser.add_argument(
        "model",
        type=str,
        metavar="PRESET|CONFIG|DIR",
        help="a preset, a config.json, a run directory or a Hugging Face directory; with --rivals, a scale "
        "of `lpa study`",
    )
    add_placement_argument(parser, "which projections are low-rank: none, attention, ffn or all")
    parser.add_argument("--rank", type=Count, help="the rank of the low-rank projections")
    parser.add_argument(
        "--seq-len", type=Count, help="tokens per sequence; by default all positions of the model"
    )
    parser.add_argument("--batch-size", type=Count, default=1, help="sequences per device")
    parser.add_argument(
        "--devices",
        type=Count,
        default=1,
        help="devices that share weights, gradients and optimizer states",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="bfloat16",
        help="the number format of activations and cache; weights, gradients and optimizer states "
        "are float32",
    )
    parser.add_argument(
        "--match",
        choices=["params", "flops"],
        help="find the wider FFN, the number of layers or the higher rank that costs as much as the "
        "dense model",
    )
    parser.add_argument(
        "--data", type=Path, help="a prepared data directory, whose vocabulary the model gets"
    )
    parser.add_argument(
        "--vocab-size", type=VocabSize, help="the vocabulary; by default that of the model"
    )
    parser.add_argument(
        "--recommend", action="store_true", help="recommend a rank for attention, with reasons"
    )
    parser.add_argument(
        "--bench",
        type=Path,
        metavar="FILE",
        help="with --recommend, what `lpa bench --json` printed on this machine",
    )
    parser.add_argument(
        "--analysis",
        type=Path,
        metavar="DIR",
        help="with --recommend, what `lpa analyze` wrote for a dense run",
    )
    parser.add_argument(
        "--rivals",
        action="store_true",
        help="tabulate instead what each variant of `lpa study rivals` costs at this scale",
    )
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)
    if arguments.rivals:
        _print_rivals(arguments)
        return

    from lpa.study.planning.plan import plan

    planned = plan(
        arguments.model,
        placement=arguments.placement,
        rank=arguments.rank,
        seq_len=arguments.seq_len,
        batch_size=arguments.batch_size,
        devices=arguments.devices,
        dtype=arguments.dtype,
        match=arguments.match,
        data=arguments.data,
        vocab_size=arguments.vocab_size,
        recommend=arguments.recommend,
        bench=arguments.bench,
        analysis=arguments.analysis,
    )
    this, dense = asdict(planned.plan), asdict(planned.dense)
    if arguments.json:
        output = {**this, "dense": dense}
        if arguments.match:
            output["match"] = [
                {**asdict(match), "within_one_percent": match.within_one_percent}
                for match in planned.match
            ]
        if planned.recommendation:
            output["recommendation"] = asdict(planned.recommendation)
        print(to_json(output))
        return
    _print_table(this, dense)
    for match in planned.match:
        note = "" if match.within_one_percent else ", the closest there is"
        print(
            f"{match.field} {match.value}: {match.ratio:.4f} of the dense {arguments.match}{note}"
        )
    if planned.recommendation:
        print(f"recommended rank of attention: {planned.recommendation.rank}")
        for reason in planned.recommendation.reasons:
            print(f"  {reason}")


def _print_rivals(arguments: Any) -> None:
    given = {"placement", "rank", "seq_len", "batch_size", "devices", "match", "data"}
    given |= {"vocab_size", "recommend", "bench", "analysis"}
    for name in sorted(given):
        if arguments[name] != build_parser().get_default(name):
            option = f"--{name.replace('_', '-')}"
            exit_with_error(
                f"{option}: got it with --rivals, whose variants are those of the study"
            )

    import torch

    from lpa.display.console import new_table, stdout
    from lpa.display.units import format_bytes, format_count, format_flops
    from lpa.study.design.rival_costs import rival_costs

    costs = rival_costs(arguments.model, dtype=getattr(torch, arguments.dtype))
    if arguments.json:
        print(to_json({"variants": [asdict(cost) for cost in costs]}))
        return
    table = new_table(f"the rivals of low-rank attention at {arguments.model}")
    table.add_column("variant")
    for heading in ("params", "FLOPs/token", "optimizer", "cache/token"):
        table.add_column(heading, justify="right")
    table.add_column("source")
    for cost in costs:
        table.add_row(
            cost.variant,
            format_count(cost.parameters),
            format_flops(cost.training_flops_per_token, ""),
            format_bytes(cost.optimizer_bytes),
            format_bytes(cost.kv_cache_bytes_per_token),
            cost.source.rpartition(", ")[2],
        )
    stdout().print(table)


def _print_table(plan: dict[str, Any], dense: dict[str, Any]) -> None:
    from lpa.display.console import new_table, stdout
    from lpa.display.units import format_bytes, format_count, format_flops

    units: dict[str, Callable[[float], str]] = {
        "parameters": format_count,
        "flops_per_token": format_flops,
        "kv_cache_bytes_per_token": format_bytes,
        "memory_bytes_per_device": format_bytes,
    }
    table = new_table("this model and its dense twin")
    for heading in ("", "this", "dense", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for section, unit in units.items():
        title = section.replace("_bytes", "").replace("_", " ")
        for name, value in plan[section].items():
            other = dense[section][name]
            ratio = f"{value / other:.3f}" if other else ""
            table.add_row(f"{title}: {name}", unit(value), unit(other), ratio)
    console = stdout()
    console.print(table)
    ranks = ", ".join(f"{name} {rank:.0f}" for name, rank in plan["break_even_rank"].items())
    console.print(f"break-even rank: {ranks}")
