"""`lpa analyze`."""

from dataclasses import asdict

from lpa.cli.eval.eval_common import add_split_argument
from lpa.cli.parsing import Count, Parser, add_model_arguments, add_output_arguments, to_json


def build_parser() -> Parser:
    parser = Parser(
        "analyze",
        description="Show why a model tolerates low rank, and where. The command computes the singular "
        "values and the effective rank of every projection (nn.Linear, Conv1D or low-rank pair), and "
        "names the matrices of the layers that it leaves out, such as experts in one 3-D parameter. "
        "With --data it also measures the entropy and the distance of every attention head, and the "
        "loss after each projection is truncated to a rank. It writes report.html and analysis.json.",
        examples="""\
  lpa analyze runs/dense --data data --out analysis
  lpa analyze path/to/hf-model --out spectra
  lpa analyze runs/lpa --data test.txt --ranks 16 32 --tokens 32768 --out analysis""",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--data", type=str, help="a prepared data directory, or text as `lpa prepare` takes it"
    )
    add_split_argument(parser)
    parser.add_argument(
        "--tokens",
        type=Count,
        help="how many tokens to read from the beginning of the text; by default 8192",
    )
    parser.add_argument(
        "--seq-len",
        type=Count,
        help="tokens per window; by default the context of the model, if it says, at most 512",
    )
    parser.add_argument(
        "--ranks",
        nargs="+",
        type=Count,
        help="the ranks to truncate to; by default 1/16, 1/8, 1/4 and 1/2 of the width",
    )
    parser.add_argument("--batch-size", type=Count, default=8, help="windows per forward pass")
    add_output_arguments(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.display import console
    from lpa.eval.analysis.analyze import analyze

    console.silence_transformers()
    with console.progress_display() as display:
        result = analyze(
            arguments.model,
            arguments.out,
            data=arguments.data,
            split=arguments.split,
            tokens=arguments.tokens,
            seq_len=arguments.seq_len,
            ranks=arguments.ranks,
            batch_size=arguments.batch_size,
            device=arguments.device,
            dtype=arguments.dtype,
            overwrite=arguments.overwrite,
            on_progress=console.bar_per_task(display),
        )
    if arguments.json:
        print(to_json(asdict(result)))
        return
    for sublayer in ("attention", "ffn"):
        ranks = [s.entropy_rank / min(s.shape) for s in result.spectra if s.sublayer == sublayer]
        if ranks:
            fraction = sum(ranks) / len(ranks)
            print(f"{sublayer:<10} entropy rank {fraction:.0%} of the width on average")
    for row in result.truncations or []:
        if row.layer is None:
            print(
                f"{row.name:<10} truncated to rank {row.rank:<5} loss {row.loss:.4f} "
                f"({row.loss_increase:+.4f})"
            )
    print(f"report     {arguments.out / 'report.html'}")
