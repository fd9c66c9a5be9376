"""`lpa convert gguf`."""

from pathlib import Path

from lpa.cli.parsing import Parser, add_output_arguments, to_json


def build_parser() -> Parser:
    parser = Parser(
        "convert gguf",
        description="Write a stock Llama directory, such as a merged run, as a GGUF file for llama.cpp "
        "and the programs that use it. The command needs an extra: pip install 'lpa[gguf]'.",
        examples="""\
  lpa convert gguf merged --out model.gguf
  lpa convert gguf merged --out model-f32.gguf --dtype float32""",
    )
    parser.add_argument(
        "model", type=Path, metavar="DIR", help="a LlamaForCausalLM with a byte-level BPE tokenizer"
    )
    parser.add_argument(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="the number format of the matrices",
    )
    add_output_arguments(parser, "file")
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.convert.gguf.gguf_export import export_gguf
    from lpa.display import console

    console.silence_transformers()
    with console.stderr.status("writing"):
        size = export_gguf(
            arguments.model, arguments.out, dtype=arguments.dtype, overwrite=arguments.overwrite
        )
    if arguments.json:
        print(to_json({"bytes": size}))
    else:
        from lpa.display.units import format_bytes

        print(f"{arguments.out}: {format_bytes(size)}")
