"""`lpa generate`."""

from lpa.cli.parsing import (
    Count,
    NumberFromZero,
    Parser,
    Seed,
    add_json_flag,
    add_model_arguments,
    to_json,
)


def build_parser() -> Parser:
    parser = Parser(
        "generate",
        description="Continue a prompt with a trained model, by sampling or greedily.",
        examples="""\
  lpa generate runs/lpa --prompt "My fellow Americans,"
  lpa generate runs/lpa --prompt "The state of our union" --temperature 0 --max-new-tokens 50""",
    )
    add_model_arguments(parser)
    parser.add_argument("--prompt", type=str, default="", help="the text to continue")
    parser.add_argument(
        "--max-new-tokens",
        type=Count,
        help="the most tokens to add; by default 100, or fewer where the context of the model ends",
    )
    parser.add_argument(
        "--temperature",
        type=NumberFromZero,
        default=0.8,
        help="the temperature of sampling; 0 takes the most likely token each time",
    )
    parser.add_argument(
        "--top-p",
        type=NumberFromZero,
        default=0.95,
        help="sample from the most likely tokens that together hold this probability",
    )
    parser.add_argument(
        "--num-samples", type=Count, default=1, help="how many continuations to print"
    )
    parser.add_argument("--seed", type=Seed, default=0, help="the seed of the sampling")
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.display import console
    from lpa.eval.generate import generate_text

    console.silence_transformers()
    with console.stderr.status("generating"):
        texts = generate_text(
            arguments.model,
            arguments.prompt,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            num_samples=arguments.num_samples,
            seed=arguments.seed,
            device=arguments.device,
            dtype=arguments.dtype,
        )
    if arguments.json:
        print(to_json({"texts": texts}))
    else:
        print("\n\n---\n\n".join(texts))
