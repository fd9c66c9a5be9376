"""`lpa eval glue`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lpa.cli.parsing import (
    Count,
    NumberFromZero,
    Parser,
    PositiveNumber,
    Seeds,
    add_device_argument,
    add_dtype_argument,
    add_json_flag,
    to_json,
)


def build_parser() -> Parser:
    parser = Parser(
        "eval glue",
        description="Fine-tune models on GLUE tasks and score them on the dev split with the official "
        "metrics, over several seeds, beside the score of the most frequent label. Finished "
        "scores are kept, so the same command resumes where it stopped.",
        examples="""\
  lpa eval glue runs/lpa --tasks rte --data glue
  lpa eval glue runs/dense runs/lpa --tasks cola mrpc rte --data glue --from-scratch
  lpa eval glue path/to/hf-model --tasks sst2 --seeds 1 --learning-rate 2e-5 --out results""",
    )
    parser.add_argument(
        "models",
        nargs="+",
        type=Path,
        metavar="MODEL",
        help="run directories or Hugging Face directories",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        type=str,
        required=True,
        metavar="TASK",
        help="the tasks, of cola, sst2, mrpc, stsb, rte, qnli, qqp, mnli, wnli",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="the folder of GLUE as distributed (CoLA/train.tsv, …), or that of a single task; by "
        "default the dataset on the hub",
    )
    parser.add_argument(
        "--seeds", type=Seeds, default=3, help="how many seeds to train with: 0, 1, …"
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="also score the architecture of each model with random weights",
    )
    parser.add_argument(
        "--epochs", type=PositiveNumber, default=3.0, help="passes over the examples"
    )
    parser.add_argument("--batch-size", type=Count, default=32, help="examples per step")
    parser.add_argument(
        "--learning-rate", type=PositiveNumber, default=1e-4, help="the peak learning rate"
    )
    parser.add_argument(
        "--weight-decay", type=NumberFromZero, default=0.01, help="the weight decay of AdamW"
    )
    parser.add_argument(
        "--max-length", type=Count, default=128, help="the most tokens of an example"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the directory of the scores; by default glue/ in the directory of each model",
    )
    add_device_argument(parser)
    add_dtype_argument(parser)
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)

    from lpa.display import console
    from lpa.eval.glue.finetune import FineTuningConfig
    from lpa.eval.glue.run_glue import run_glue

    console.silence_transformers()
    with console.progress_display() as display:
        results = run_glue(
            arguments.models,
            arguments.tasks,
            data=arguments.data,
            seeds=arguments.seeds,
            from_scratch=arguments.from_scratch,
            settings=FineTuningConfig(
                epochs=arguments.epochs,
                batch_size=arguments.batch_size,
                learning_rate=arguments.learning_rate,
                weight_decay=arguments.weight_decay,
                max_length=arguments.max_length,
                dtype=arguments.dtype,
            ),
            out=arguments.out,
            device=arguments.device,
            on_progress=console.bar_per_task(display),
        )
    if arguments.json:
        print(to_json({task: asdict(result) for task, result in results.items()}))
        return
    _print_table(results)


def _print_table(results: dict[str, Any]) -> None:
    """A row per task and metric, a column per model; scores times 100."""
    from lpa.display.console import new_table, stdout
    from lpa.display.units import format_mean
    from lpa.eval.glue.tasks import TASKS

    models = list(next(iter(results.values())).models)
    seeds = len(next(iter(next(iter(results.values())).models[models[0]].values())).values)
    over_seeds = ": mean ± deviation over seeds" if seeds > 1 else ", one seed"
    table = new_table(f"GLUE dev scores × 100{over_seeds}")
    for heading in ("task", "metric"):
        table.add_column(heading, no_wrap=True)
    for heading in ("majority", *models):
        table.add_column(heading, justify="right", overflow="fold")
    for task, result in results.items():
        for metric, majority in result.majority.items():
            scores = [result.models[model][metric] for model in models]
            table.add_row(
                TASKS[task].title,
                metric.replace("_", " "),
                format_mean(100 * majority, None, 1),
                *(
                    format_mean(100 * score.mean, 100 * score.std if seeds > 1 else None, 1)
                    for score in scores
                ),
            )
    stdout().print(table)
