"""`lpa eval harness`."""

from typing import Any

from lpa.cli.parsing import (
    Count,
    CountOrZero,
    Parser,
    PositiveNumber,
    add_json_flag,
    add_model_arguments,
    to_json,
)


def build_parser() -> Parser:
    parser = Parser(
        "eval harness",
        description="Run tasks of the lm-evaluation-harness on a model. The command needs an extra: pip "
        "install 'lpa[harness]'.",
        examples="""\
  lpa eval harness runs/lpa --tasks lambada_openai hellaswag
  lpa eval harness runs/lpa --tasks arc_easy --num-fewshot 5 --limit 100
  lpa eval harness runs/lpa --tasks my_task.yaml --json""",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--tasks",
        nargs="+",
        type=str,
        required=True,
        metavar="TASK",
        help="names that lm-eval knows, or your own task files (.yaml)",
    )
    parser.add_argument(
        "--num-fewshot",
        type=CountOrZero,
        help="examples before each question; by default as many as the task has. A task that is fixed at 0 "
        "takes no others",
    )
    parser.add_argument(
        "--limit",
        type=PositiveNumber,
        help="the most examples of each task, or below 1 a fraction of them",
    )
    parser.add_argument("--batch-size", type=Count, default=8, help="requests per forward pass")
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.display import console
    from lpa.eval.harness import run_harness

    console.silence_transformers()
    results = run_harness(
        arguments.model,
        arguments.tasks,
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    figures = {
        task: {"num_fewshot": results["n-shot"].get(task), **figures_of_task}
        for task, figures_of_task in results["results"].items()
    }
    if arguments.json:
        print(to_json(figures))
        return
    _print_table(figures)


def _print_table(results: dict[str, Any]) -> None:
    from lpa.display.console import new_table, stdout

    table = new_table("lm-evaluation-harness")
    for heading in ("task", "metric", "filter"):
        table.add_column(heading, overflow="fold")
    for heading in ("n-shot", "value", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task, figures in results.items():
        for key, value in figures.items():
            metric, _, chosen = key.partition(",")
            if not isinstance(value, float) or metric.endswith("_stderr"):
                continue
            error = figures.get(f"{metric}_stderr,{chosen}")
            table.add_row(
                task,
                metric,
                chosen,
                "–" if figures["num_fewshot"] is None else str(figures["num_fewshot"]),
                f"{value:.4f}",
                f"{error:.4f}" if isinstance(error, float) else "–",
            )
    stdout().print(table)
