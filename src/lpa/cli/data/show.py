"""`lpa data show`."""

from lpa.cli.parsing import Count, Parser, Seed, add_data_argument, add_json_flag, to_json


def build_parser() -> Parser:
    parser = Parser(
        "data show",
        description="Print decoded documents of a prepared data directory, with their boundaries "
        "visible.",
        examples="""\
  lpa data show data --num-samples 3
  lpa data show data --split validation --num-samples 1 --max-tokens 1000""",
    )
    add_data_argument(parser)
    parser.add_argument("--split", type=str, default="train", help="the split to read")
    parser.add_argument("--num-samples", type=Count, default=5, help="how many documents to print")
    parser.add_argument(
        "--max-tokens", type=Count, default=200, help="the most tokens of a document to print"
    )
    parser.add_argument("--seed", type=Seed, default=0, help="the seed of the random choice")
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.data.stats import sample_documents

    texts = sample_documents(
        arguments.data,
        arguments.split,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
        max_tokens=arguments.max_tokens,
    )
    if arguments.json:
        print(to_json({"documents": texts}))
    else:
        print("\n\n---\n\n".join(texts))
