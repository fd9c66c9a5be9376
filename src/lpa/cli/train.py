"""`lpa train`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import yaml

from lpa.cli.parsing import Parser, add_json_flag, add_overwrite_flag, fail


def build_parser() -> Parser:
    from jsonargparse import ActionConfigFile

    from lpa.train.config import CheckpointConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig

    parser = Parser(
        "train",
        usage="lpa train RECIPE --out RUN [options]",
        description="Train a model as a recipe says; options change single values of it.",
        examples="""\
  lpa train recipes/nano.yaml --data.path data --out runs/lpa
  lpa train recipes/nano.yaml --data.path data --model.placement none --out runs/dense
  lpa train recipes/nano.yaml --data.path data --out runs/lpa --resume""",
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        metavar="RECIPE",
        help="the same as RECIPE, a YAML file",
    )
    parser.add_argument("--out", type=Path, required=True, help="the run directory to make")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the latest checkpoint in --out"
    )
    add_overwrite_flag(parser)
    add_json_flag(parser)
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(ModelConfig, "model")
    parser.add_class_arguments(OptimConfig, "optim")
    parser.add_class_arguments(TrainConfig, "train")
    parser.add_class_arguments(CheckpointConfig, "checkpoint")
    return parser


def main(rest: list[str]) -> None:
    # A recipe is a file of defaults, so it must be read before the options that change it.
    if rest and not rest[0].startswith("-"):
        _check_recipe(Path(rest[0]))
        rest = ["--config", *rest]
    parser = build_parser()
    arguments = parser.parse_args(rest)
    sections = parser.instantiate_classes(arguments)

    from lpa import console
    from lpa.train.config import RunConfig
    from lpa.train.result import RunInterruptedError
    from lpa.train.trainer import train

    console.hide_other_progress()
    config = RunConfig(
        **{name: sections[name] for name in ("data", "model", "optim", "train", "checkpoint")}
    )
    out = arguments.out
    try:
        result = train(config, out, resume=arguments.resume, overwrite=arguments.overwrite)
    except RunInterruptedError as stop:
        print(f"lpa: stopped by {stop}; --resume goes on from there", file=sys.stderr)
        raise SystemExit(128 + stop.signal_number) from None
    if result is None:
        print(f"{out}: stopped at step {config.train.stop_at}; --resume goes on from there")
    elif arguments.json:
        print(json.dumps(asdict(result)))
    else:
        line = f"{out}: {result.steps} steps, {result.tokens:,} tokens, {result.wall_seconds:.0f} s"
        if result.validation:
            line += f", validation perplexity {result.validation.perplexity:.2f}"
        print(line)


def _check_recipe(path: Path) -> None:
    """Say which file is at fault: the parser's own message would not."""
    if not path.is_file():
        fail(f"RECIPE {path}: no such file; expected a YAML file such as recipes/nano.yaml")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(f"RECIPE {path}: is not YAML: {error}")
    if not isinstance(recipe, dict):
        fail(f"RECIPE {path}: got {type(recipe).__name__}; expected sections such as `train:`")
