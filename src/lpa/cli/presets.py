"""`lpa presets`."""

from lpa.cli.parsing import Parser, add_json_flag, add_placement_argument, to_json


def build_parser() -> Parser:
    parser = Parser(
        "presets",
        description="List the named architectures, with their parameters in each placement.",
        examples="""\
  lpa presets
  lpa presets --json""",
    )
    add_placement_argument(parser, "count only one placement: none, attention, ffn or all")
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.model.presets import PRESETS, preset_config, preset_parameters

    counts = preset_parameters(arguments.placement)
    if arguments.json:
        print(
            to_json({n: {"origin": PRESETS[n].origin, "parameters": c} for n, c in counts.items()})
        )
        return

    from lpa.display.console import new_table, stdout
    from lpa.display.units import format_count

    table = new_table("parameters by placement")
    for heading in ("preset", "origin", "layers", "rank"):
        table.add_column(heading, no_wrap=True)
    for placement in next(iter(counts.values())):
        table.add_column(placement, justify="right", no_wrap=True)
    for name, preset in PRESETS.items():
        config = preset_config(name)
        table.add_row(
            name,
            preset.origin,
            f"{config.num_hidden_layers} × {config.hidden_size}",
            str(config.rank),
            *map(format_count, counts[name].values()),
        )
    stdout().print(table)
