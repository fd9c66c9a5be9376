"""`lpa study`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lpa.cli.parsing import (
    Count,
    Parser,
    PositiveNumber,
    Seeds,
    Workers,
    add_json_flag,
    exit_with_error,
    to_json,
)
from lpa.storage.records import YamlLoader, parse_value

if TYPE_CHECKING:
    from lpa.study.design.grid import Study
    from lpa.study.execution.job import Job
    from lpa.study.run_study import StudyOutcome

# Here too, so that --help needs none of the library; a test compares them with the grids.
QUESTIONS = {
    "placement": "Where may parameters go - in attention, in the FFN, or in both?",
    "rank": "How does the rank of attention matter?",
    "sublayers": "Do all four projections of attention need low rank?",
    "surplus": "Where should the parameters go that low rank saves?",
    "scale": "Does it hold as models grow?",
    "tuning": "Is the baseline fair - which settings are best for each placement?",
    "recipe": "Which training of the low-rank pair works best?",
    "rivals": "Is low-rank attention better than what one would pick instead?",
}


def build_parser() -> Parser:
    studies = "\n".join(f"  {name:<11}{question}" for name, question in QUESTIONS.items())
    parser = Parser(
        "study",
        description="Run an experiment of the paper at a scale of your choice. Finished runs are never "
        f"repeated, and an interrupted study resumes.\n\nstudies:\n{studies}",
        examples="""\
  lpa study placement --scale nano --data data --out runs/studies --jobs 2
  lpa study tuning --scale nano --data data --out runs/studies --seeds 1
  lpa study rank --scale nano --data data --out runs/studies --tuned runs/studies/tuned-nano.yaml
  lpa study rivals --scale pico --tokens-per-parameter 2 --tune --data data --out runs/tuning-2
  lpa study placement --scale 130m --dry-run""",
    )
    parser.add_argument(
        "name", choices=list(QUESTIONS), metavar="NAME", help="the study to run, one of those above"
    )
    parser.add_argument(
        "--scale",
        type=str,
        default="nano",
        help="the size of the models: tiny, femto, pico, nano, micro, 130m, 370m or 3b",
    )
    parser.add_argument("--seeds", type=Seeds, default=3, help="how many runs of each variant")
    parser.add_argument(
        "--jobs",
        type=Workers,
        default=1,
        help="how many runs train at a time on this machine",
    )
    parser.add_argument(
        "--out", type=Path, help="the directory of the runs; studies that share it share equal runs"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="a prepared data directory; by default the bundled corpus, at the scales tiny to nano",
    )
    parser.add_argument("--steps", type=Count, help="training steps, instead of those of the scale")
    parser.add_argument(
        "--tokens-per-parameter",
        type=PositiveNumber,
        help="training tokens for each parameter of the dense model, instead of those of the scale",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        type=str,
        default=[],
        help="the variants to run; by default all of them",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="with the study rivals: find the learning rate of each variant, with seeds from 100 on: "
        "the same rates for all, and further ones while a best rate is the lowest or the highest of them",
    )
    parser.add_argument(
        "--tuned",
        type=Path,
        help="a file of settings, which the study `tuning` writes, or --tune with the study rivals",
    )
    parser.add_argument(
        "--executor",
        choices=["local", "slurm"],
        default="local",
        help="what runs the jobs: this machine, or a Slurm cluster",
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        type=str,
        metavar="KEY=VALUE",
        help="a parameter of submitit for --executor slurm, such as timeout_min=1440, "
        "slurm_partition=gpu or gpus_per_node=1; repeat the option for each; timeout_min is needed",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the grid and its cost, and run nothing"
    )
    add_json_flag(parser)
    return parser


def main(argv: list[str]) -> None:
    arguments = build_parser().parse_args(argv)
    if arguments.out is None and not arguments.dry_run:
        exit_with_error("--out: got nothing; expected the directory for the runs")
    choices = {
        "scale": arguments.scale,
        "data": arguments.data,
        "steps": arguments.steps,
        "tokens_per_parameter": arguments.tokens_per_parameter,
        "variants": arguments.variants,
        "tune": arguments.tune,
        "tuned": arguments.tuned,
    }
    slurm = _slurm_parameters(arguments.slurm)
    started: list[Study] = []

    def on_start(study: "Study") -> None:
        started.append(study)
        if not arguments.json:
            _print_grid(study, arguments.seeds)

    from lpa.study.run_study import check_executor, plan_study, run_study

    outcome = None
    if arguments.dry_run:
        check_executor(arguments.executor, slurm, arguments.jobs)
        on_start(plan_study(arguments.name, out=arguments.out, **choices))
    else:
        outcome = run_study(
            arguments.name,
            arguments.out,
            seeds=arguments.seeds,
            jobs=arguments.jobs,
            executor=arguments.executor,
            slurm=slurm,
            on_start=on_start,
            on_state=_print_state,
            **choices,
        )
        _print_problems(outcome)
    if arguments.json:
        figures = _grid_figures(started[0], arguments.seeds)
        print(to_json(figures | (_outcome_figures(outcome) if outcome else {})))
    elif outcome:
        _print_tuned(outcome)
    if outcome and (outcome.failed or outcome.problem):
        raise SystemExit(1)


# Parameters of submitit that are no single value; of the others, brackets and the like stay text.
_SLURM_KINDS: dict[str, Any] = {
    **dict.fromkeys(("setup", "teardown", "srun_args"), list[str]),
    "additional_parameters": dict[str, bool | int | float | str],
}


def _slurm_parameters(given: list[str]) -> dict[str, Any]:
    parameters = {}
    for pair in given:
        key, _, text = pair.partition("=")
        if not key or not text:
            exit_with_error(f"--slurm: got {pair}; expected KEY=VALUE, such as timeout_min=1440")
        parameters[key] = _slurm_value(key, text)
    return parameters


def _slurm_value(key: str, text: str) -> Any:
    """The value of a parameter, written as in a recipe."""
    try:
        value = yaml.load(text, YamlLoader)
    except (ValueError, RecursionError, yaml.YAMLError):
        value = text
    if kind := _SLURM_KINDS.get(key.removeprefix("slurm_")):
        return parse_value(value, kind, field=f"--slurm {key}")
    return value if isinstance(value, bool | int | float | str) else text


def _grid_figures(study: "Study", seeds: int) -> dict[str, Any]:
    """What a study runs and what that costs, as `--json` prints it."""
    return {
        "study": study.name,
        "scale": study.scale,
        "seeds": seeds,
        "variants": [asdict(variant) for variant in study.variants],
        "runs": len(study.variants) * seeds,
        "tokens": seeds * sum(variant.tokens for variant in study.variants),
        "flops": seeds * study.flops,
        "hours": seeds * study.flops / study.flops_per_second / 3600,
        "device": study.device,
    }


def _print_grid(study: "Study", seeds: int) -> None:
    from lpa.display.console import new_table, stdout
    from lpa.display.units import format_count, format_duration, format_flops

    table = new_table(f"{study.name} at {study.scale}: {study.question}")
    table.add_column("variant", overflow="fold")
    for heading in ("params", "FLOPs/token", "tokens", "FLOPs", "time", "match"):
        table.add_column(heading, justify="right", no_wrap=True)
    for variant in study.variants:
        flops = float(variant.train_flops_per_token) * variant.tokens
        table.add_row(
            variant.name,
            format_count(variant.parameters),
            format_flops(variant.train_flops_per_token, ""),
            format_count(variant.tokens),
            format_flops(flops, ""),
            format_duration(flops / study.flops_per_second),
            "" if variant.match is None else f"{variant.match:.3f}",
        )
    stdout().print(table)
    figures = _grid_figures(study, seeds)
    unit = "GPU-hours" if "NVIDIA" in study.device else "core-hours"
    print(
        f"{len(study.variants)} variants x {seeds} seeds = {figures['runs']} runs, "
        f"{format_count(figures['tokens'])} tokens, {format_flops(figures['flops'])}, "
        f"about {figures['hours']:,.1f} {unit}, assuming {study.device}"
    )


def _print_state(job: "Job", state: str, done: int, total: int) -> None:
    where = f"  see {job.log}" if state == "failed" else ""
    line = f"[{done}/{total}] {job.variant}, seed {job.seed}: {state}{where}"
    print(line, file=sys.stderr, flush=True)


def _print_problems(outcome: "StudyOutcome") -> None:
    for job in outcome.failed:
        print(f"lpa: failed: {job.variant}, seed {job.seed}: {job.log}", file=sys.stderr)
    if outcome.problem:
        print(f"lpa: nothing tuned: {outcome.problem}", file=sys.stderr)


def _print_tuned(outcome: "StudyOutcome") -> None:
    if outcome.tuned is not None:
        print(f"tuned: {outcome.tuned} in {outcome.tuned_file}")
    for group, name, value in outcome.short_axes:
        print(f"{group}: {name} {value:g} is at the end of what was tried")


def _outcome_figures(outcome: "StudyOutcome") -> dict[str, Any]:
    """Which runs failed and what was tuned, as `--json` prints it."""
    failed = [
        {"variant": job.variant, "seed": job.seed, "log": str(job.log)} for job in outcome.failed
    ]
    figures: dict[str, Any] = {"failed": failed}
    if outcome.tuned_file:
        figures["tuned"] = outcome.tuned
        figures["tuned_file"] = str(outcome.tuned_file)
        figures["at_edge"] = [
            {"variant": group, "setting": name, "value": value}
            for group, name, value in outcome.short_axes
        ]
    if outcome.problem:
        figures["problem"] = outcome.problem
    return figures
