"""`lpa convert import-published`."""

from pathlib import Path

from lpa.cli.parsing import Count, Parser, add_output_arguments, to_json


def build_parser() -> Parser:
    parser = Parser(
        "convert import-published",
        description="Turn a checkpoint of the published LPA code into a Hugging Face directory. The "
        "command reads all sizes from the tensors, and accepts no missing and no surplus "
        "tensor.",
        examples="""\
  lpa convert import-published s2.safetensors --setting 2 --num-attention-heads 12 --out model
  lpa convert import-published s1.safetensors --setting 1 --num-attention-heads 8 --out model""",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CKPT", help="a safetensors file with the published names"
    )
    parser.add_argument(
        "--setting",
        type=Count,
        required=True,
        help="the published setting: 1 (post-sublayer norm) or 2 (LLaMA-like)",
    )
    parser.add_argument(
        "--num-attention-heads",
        type=Count,
        required=True,
        help="the number of heads, which the tensors do not tell",
    )
    parser.add_argument(
        "--seq-len",
        type=Count,
        help="the positions of setting 2, which its tensors do not tell; by default 256",
    )
    add_output_arguments(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.convert.import_published import import_published
    from lpa.display import console

    console.silence_transformers()
    model = import_published(
        arguments.checkpoint,
        arguments.setting,
        num_attention_heads=arguments.num_attention_heads,
        seq_len=arguments.seq_len,
        out=arguments.out,
        overwrite=arguments.overwrite,
    )
    figures = {"parameters": model.num_parameters(), "placement": model.config.placement}
    if arguments.json:
        print(to_json(figures))
    else:
        from lpa.display.units import format_count

        count = format_count(figures["parameters"])
        print(f"{arguments.out}: {count} parameters, placement {figures['placement']}")
