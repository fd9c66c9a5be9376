"""`lpa train`."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpa.cli.parsing import (
    Count,
    Parser,
    add_json_flag,
    add_overwrite_flag,
    exit_with_error,
    to_json,
)
from lpa.cli.suggestions import explain_expression

if TYPE_CHECKING:
    from lpa.train.config import RunConfig
    from lpa.train.dry_run import RunPlan
    from lpa.train.simulation.simulate import SimulatedStep


SECTIONS = ("data", "model", "optim", "train", "checkpoint", "parallel", "distill")


def build_parser() -> Parser:
    from jsonargparse import ActionConfigFile

    from lpa.train import config

    parser = Parser(
        "train",
        usage="lpa train RECIPE --out RUN [options]",
        description="Train a model as a recipe says. Options change single values of the recipe. Where "
        "`torchrun --nproc-per-node 8 -m lpa train RECIPE --out RUN` starts the command, all "
        "processes train one model together.",
        examples="""\
  lpa train recipes/nano.yaml --data.path data --out runs/lpa
  lpa train recipes/nano.yaml --data.path data --model.placement none --out runs/dense
  lpa train recipes/nano.yaml --data.path data --out runs/lpa --resume
  lpa train recipes/3b.yaml --dry-run --simulate""",
    )
    parser.arguments.add_argument(
        "--config",
        action=ActionConfigFile,
        metavar="RECIPE",
        help="a YAML file such as recipes/nano.yaml, with the sections that are listed below",
    )
    parser.arguments.add_argument(
        "--print_config",
        action="store_true",
        help="print the recipe with all options applied, and exit",
    )
    parser.add_argument("--out", type=Path, help="the run directory to write")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=_LATEST,
        type=str,
        metavar="CHECKPOINT",
        help="resume from the latest intact checkpoint in --out, or from the one named",
    )
    parser.add_argument(
        "--allow-change",
        nargs="+",
        default=[],
        type=str,
        metavar="FIELD",
        help="fields that may differ from those of the run with --resume, such as optim.lr",
    )
    add_overwrite_flag(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the memory and time that the run would take, and train nothing",
    )
    parser.add_argument(
        "--simulate",
        action="store_true",
        help="with --dry-run, also run one step of the real program on fake tensors (shapes without data), "
        "in one process that simulates all; takes minutes for a large model",
    )
    parser.add_argument(
        "--processes",
        type=Count,
        help="the number of processes to plan for with --dry-run; by default as many as the parallel "
        "section needs",
    )
    add_json_flag(parser)
    parser.add_class_arguments(config.DataConfig, "data")
    parser.add_class_arguments(config.ModelConfig, "model", skip={"from_"})
    # No field of a class can have the name.
    parser.add_argument(
        "--model.from",
        type=Path | None,
        help="start from the weights of a directory, such as `lpa convert factorize` writes; it decides "
        "the architecture, so of this section only attn_implementation may be set beside it",
    )
    parser.add_class_arguments(config.OptimConfig, "optim")
    parser.add_class_arguments(config.TrainConfig, "train")
    parser.add_class_arguments(config.CheckpointConfig, "checkpoint")
    parser.add_class_arguments(config.ParallelConfig, "parallel")
    parser.add_class_arguments(config.DistillConfig, "distill")
    return parser


_LATEST = "latest"


def main(argv: list[str]) -> None:
    if not argv:
        exit_with_error(
            "RECIPE: got nothing; expected a YAML file such as recipes/nano.yaml, or options in its place, "
            "at least --data.path DIR and --out RUN"
        )
    if not argv[0].startswith("-"):
        argv = ["--config", *argv]
    recipes, options = _split_recipes(argv)
    settled = {word.split("=")[0].removeprefix("--train.") for word in options}
    for recipe in recipes:
        _check_recipe(Path(recipe), settled)
    parser = build_parser()
    arguments = parser.parse_args([*(f"--config={recipe}" for recipe in recipes), *options])
    apply_option_precedence(arguments, options)
    config = run_config(parser, arguments)
    _refuse_unused_options(config, options)
    if arguments.print_config:
        _print_config(config)
        return

    from lpa.display import console

    console.silence_transformers()
    if arguments.allow_change and arguments.resume is None:
        exit_with_error("--allow-change: works only with --resume")
    for option, given in (("--resume", arguments.resume), ("--overwrite", arguments.overwrite)):
        if arguments.dry_run and given:
            exit_with_error(f"{option}: works only without --dry-run, which writes nothing")
    if arguments.dry_run:
        _plan(config, arguments.processes, simulate=arguments.simulate, as_json=arguments.json)
    elif arguments.simulate:
        exit_with_error("--simulate: works only with --dry-run")
    elif arguments.processes is not None:
        exit_with_error(
            "--processes: works only with --dry-run; torchrun says how many processes train"
        )
    elif arguments.out is None:
        exit_with_error("--out: got nothing; expected the run directory to make")
    else:
        _train(config, arguments)


def _split_recipes(argv: list[str]) -> tuple[list[str], list[str]]:
    """The recipes that `--config` names, and all other words.

    A recipe is a file of defaults: the parser must read it before the options that change it.
    """
    recipes: list[str] = []
    options: list[str] = []
    words = iter(argv)
    for word in words:
        if word.startswith("--config="):
            recipes.append(word.removeprefix("--config="))
        elif word == "--config" and (recipe := next(words, "")):
            recipes.append(recipe)
        else:
            options.append(word)
    return recipes, options


def apply_option_precedence(arguments: Any, argv: list[str]) -> None:
    """Drop `train.tokens` of a recipe where `--train.steps` is given, and the like.

    Both of a pair among the options are refused.
    """
    from lpa.train.config.train_config import SAME_LENGTHS

    given = {word.split("=")[0] for word in argv}
    for field, other in SAME_LENGTHS:
        if f"--train.{field}" not in given:
            continue
        # An option may clear the other field: `--train.tokens null`.
        if f"--train.{other}" in given and arguments.train[other] is not None:
            exit_with_error(
                f"--train.{field}: got {arguments.train[field]} beside --train.{other} "
                f"{arguments.train[other]}; expected one of the two"
            )
        arguments.train[other] = None


# Field that a run with some settings ignores -> whether this one uses it, and with what it would.
_USED: dict[str, tuple[Callable[["RunConfig"], object], str]] = {
    "optim.decay_fraction": (lambda run: run.optim.schedule == "wsd", "--optim.schedule wsd"),
    "train.sample_prompt": (lambda run: run.train.sample_every, "--train.sample_every STEPS"),
    "train.sample_tokens": (lambda run: run.train.sample_every, "--train.sample_every STEPS"),
    "distill.temperature": (lambda run: run.distill.teacher, "--distill.teacher MODEL"),
    "distill.weight": (lambda run: run.distill.teacher, "--distill.teacher MODEL"),
}


def _refuse_unused_options(config: "RunConfig", argv: list[str]) -> None:
    """Refuse options without effect; in a recipe, such fields may stand beside what makes use of them."""
    given = {word.split("=")[0] for word in argv}
    for field, (is_used, needed) in _USED.items():
        section, _, name = field.partition(".")
        settings = getattr(config, section)
        changed = getattr(settings, name) != getattr(type(settings), name)
        if f"--{field}" in given and changed and not is_used(config):
            exit_with_error(f"--{field}: works only with {needed}")


def run_config(parser: Parser, arguments: Any) -> "RunConfig":
    """What parsed arguments mean, checked.

    Raises:
        UserError: a field that cannot be so.
    """
    from dataclasses import replace

    from lpa.train.config import RunConfig

    source = arguments.model.pop("from")
    sections = parser.instantiate_classes(arguments)
    sections.model = replace(sections.model, from_=source)
    return RunConfig(**{name: sections[name] for name in SECTIONS})


def _print_config(config: "RunConfig") -> None:
    from lpa.train.init_weights import with_source_seq_len

    print(with_source_seq_len(config).to_yaml(), end="")


def _train(config: "RunConfig", arguments: Any) -> None:
    from lpa.train.distributed.launch import end_launch
    from lpa.train.distributed.process_group import LostRankError, OtherRankFailedError
    from lpa.train.result import RunInterruptedError, RunStopped, format_summary
    from lpa.train.run import train

    out, checkpoint = arguments.out, arguments.resume
    resume = checkpoint == _LATEST if checkpoint in (None, _LATEST) else Path(checkpoint)
    try:
        result = train(
            config,
            out,
            resume=resume,
            overwrite=arguments.overwrite,
            allow_change=arguments.allow_change,
            show_bar=True,
        )
    except RunInterruptedError as stop:
        if _is_main_process():
            print(
                f"lpa: stopped by {stop}; --resume continues from there",
                file=sys.stderr,
                flush=True,
            )
        if not stop.from_launcher:
            end_launch()
        raise SystemExit(128 + stop.signal_number) from None
    except OtherRankFailedError:
        raise SystemExit(2) from None
    except LostRankError as error:
        print(f"lpa: error: {error}", file=sys.stderr, flush=True)
        # Threads that still wait for the lost process would hold up the ordinary way out.
        os._exit(1)
    if not _is_main_process():
        return
    if arguments.json:
        stopped = isinstance(result, RunStopped)
        print(to_json({"stopped": asdict(result)} if stopped else asdict(result)))
    elif isinstance(result, RunStopped):
        print(f"{out}: stopped at step {result.step}; --resume continues from there")
    else:
        print(format_summary(result, out))


def _is_main_process() -> bool:
    """Whether this is the one of torchrun's processes that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _plan(config: "RunConfig", processes: int | None, *, simulate: bool, as_json: bool) -> None:
    from lpa.display.console import new_table, stdout
    from lpa.train.dry_run import plan_run

    plan = plan_run(config, processes)
    step = None
    if simulate:
        from lpa.train.simulation.simulate import simulate_step

        step = simulate_step(config, processes)
    if as_json:
        print(to_json(asdict(plan) | ({} if step is None else {"simulation": asdict(step)})))
        return
    table = new_table("what the run would take", show_header=False)
    for name, value in plan.rows():
        table.add_row(name, value)
    stdout().print(table)
    if step is not None:
        _print_simulation(plan, step)


def _print_simulation(plan: "RunPlan", step: "SimulatedStep") -> None:
    """A simulated step, and beside it what the plan says."""
    from lpa.display.console import new_table, stdout
    from lpa.train.simulation.comparison import compare_collectives, compare_memory

    memory = new_table("memory per device, where the passes and the optimizer need most")
    for heading in ("phase", "kind", "simulated", "planned", "ratio"):
        memory.add_column(heading, justify="left" if heading in ("phase", "kind") else "right")
    for row in compare_memory(plan.step_memory_bytes, step.step_memory_bytes):
        memory.add_row(*row)
    exchanges = new_table("what a process sends in a step, and how often it takes part")
    for heading in ("phase", "along", "kind", "times", "planned", "sent", "planned"):
        is_name = heading in ("phase", "along", "kind")
        exchanges.add_column(heading, justify="left" if is_name else "right")
    for exchange in compare_collectives(plan.collectives, step.collectives):
        exchanges.add_row(*exchange)
    stdout().print(memory)
    stdout().print(exchanges)


def _check_recipe(path: Path, settled: set[str]) -> None:
    """Say which file is at fault: the parser's own message would not."""
    from lpa.errors import UserError
    from lpa.train.config.recipe import check_recipe

    if not path.is_file():
        found = "is a directory" if path.is_dir() else "no such file"
        exit_with_error(f"RECIPE {path}: {found}; expected a YAML file such as recipes/nano.yaml")
    try:
        check_recipe(path, settled)
    except UserError as error:
        given = re.search(r"got '(\S+)'; expected a whole number", str(error))
        exit_with_error(f"RECIPE {error}{explain_expression(given[1]) if given else ''}")
