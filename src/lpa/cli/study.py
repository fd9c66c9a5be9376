"""`lpa study`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from lpa.study.design.grid import Study
    from lpa.study.execution.job_runner import Job

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
    parser.add_argument("--jobs", type=Workers, default=1, help="how many runs train at a time")
    parser.add_argument(
        "--out", type=Path, help="the directory of the runs; studies that share it share equal runs"
    )
    parser.add_argument(
        "--data", type=Path, help="a prepared data directory; by default the bundled corpus"
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
        help="find the learning rate of each variant, with seeds from 100 on: the same rates for all, "
        "and further ones while a best rate is the lowest or the highest of them",
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
    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        exit_with_error(f"--out {arguments.out}: is a file; expected a directory")
    if arguments.tuned is not None and (arguments.name == "tuning" or arguments.tune):
        exit_with_error("--tuned: goes with every study but tuning, which finds the settings")
    if arguments.tune and arguments.name != "rivals":
        exit_with_error(f"--tune: got it with {arguments.name}; expected rivals")
    if arguments.steps is not None and arguments.tokens_per_parameter is not None:
        exit_with_error("--steps: got it with --tokens-per-parameter; expected one of them")
    arguments.slurm = _slurm_parameters(arguments.slurm, arguments.executor)

    from lpa.data.manifest import Manifest
    from lpa.study.bundled_data import prepare_bundled_for_scale
    from lpa.study.design.grid import expand_grid
    from lpa.study.design.grid_files import tuned_names
    from lpa.study.design.study_index import recorded_dtype
    from lpa.study.design.tuned_settings import read_tuned
    from lpa.study.rates.rate_tuning import first_rates, tune_learning_rates

    names = tuned_names(arguments.name)
    tuned = read_tuned(arguments.tuned, names) if arguments.tuned else None
    data = arguments.data

    def grid() -> "Study":
        vocab_size = Manifest.load(data).vocab_size if data else None
        return expand_grid(
            arguments.name,
            arguments.scale,
            vocab_size=vocab_size,
            steps=arguments.steps,
            tokens_per_parameter=arguments.tokens_per_parameter,
            only=arguments.variants,
            tuned=tuned,
            dtype=recorded_dtype(arguments.out, arguments.scale) if arguments.out else None,
        )

    study = grid()
    if data is None and not arguments.dry_run:
        data = prepare_bundled_for_scale(arguments.out, arguments.scale)
        study = grid()
    first = tune_learning_rates(study, first_rates(study)) if arguments.tune else study
    if not arguments.json:
        _print_grid(first, arguments.seeds)
    outcome = {} if arguments.dry_run else _run_study(study, arguments, data.resolve())
    if arguments.json:
        print(to_json(_grid_figures(first, arguments.seeds) | outcome))
    if outcome.get("failed"):
        raise SystemExit(1)


def _slurm_parameters(given: list[str], executor: str) -> dict[str, int | str]:
    if given and executor != "slurm":
        exit_with_error(
            f"--slurm: got {given[0]} without --executor slurm; expected both or neither"
        )
    parameters: dict[str, int | str] = {}
    for pair in given:
        key, _, value = pair.partition("=")
        if not key or not value:
            exit_with_error(f"--slurm: got {pair}; expected KEY=VALUE, such as timeout_min=1440")
        parameters[key] = int(value) if value.isdecimal() else value
    # submitit's own limit is five minutes, after which every run would be killed.
    if executor == "slurm" and "timeout_min" not in parameters:
        exit_with_error(
            "--executor slurm: got no time limit of a run; expected --slurm timeout_min=MINUTES"
        )
    return parameters


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


def _run_study(study: "Study", arguments: Any, data: Path) -> dict[str, Any]:
    """Run what is not finished; which runs failed and what was tuned, as `--json` prints it."""
    from lpa.storage.locks import lock_directory
    from lpa.storage.outputs import resolve_output

    out = resolve_output(arguments.out)
    # Other studies may work in the same directory.
    name = f"{study.name}-tuning" if arguments.tune else study.name
    with lock_directory(out, part=f"{name}-{study.scale}", output=arguments.out):
        if arguments.tune:
            return _run_tuning(study, arguments, data, out)
        return _run_locked(study, arguments, data, out)


def _run_tuning(study: "Study", arguments: Any, data: Path, out: Path) -> dict[str, Any]:
    """Run a tuning with further rates until no best one is an extreme of them."""
    from lpa.study.design.study_index import index_path
    from lpa.study.rates.rate_tuning import (
        best_rates,
        extend_rates,
        first_rates,
        tried_rates,
        tune_learning_rates,
    )
    from lpa.study.results.study_results import read_study

    rates = first_rates(study)
    index = index_path(tune_learning_rates(study, rates), out)
    rates = tried_rates(index) or rates
    while True:
        outcome = _run_locked(tune_learning_rates(study, rates), arguments, data, out)
        best = best_rates(read_study(index, arguments.seeds))
        wider = extend_rates(rates, best.values())
        if wider == rates:
            return outcome
        rates = wider


def _run_locked(study: "Study", arguments: Any, data: Path, out: Path) -> dict[str, Any]:
    from lpa.study.execution.job_runner import create_jobs, run_jobs

    jobs = create_jobs(study, arguments.seeds, out, data)
    done, total = 0, len({job.run_id for job in jobs})

    def on_state(job: "Job", state: str) -> None:
        nonlocal done
        done += state != "running"
        where = f"  see {job.log}" if state == "failed" else ""
        line = f"[{done}/{total}] {job.variant}, seed {job.seed}: {state}{where}"
        print(line, file=sys.stderr, flush=True)

    if arguments.executor == "slurm":
        from lpa.study.execution.slurm_executor import submit_jobs

        failed = submit_jobs(jobs, out / "submitit", arguments.slurm, on_state=on_state)
    else:
        failed = run_jobs(jobs, arguments.jobs, on_state)
    for job in failed:
        print(f"lpa: failed: {job.variant}, seed {job.seed}: {job.log}", file=sys.stderr)
    outcome: dict[str, Any] = {
        "failed": [
            {"variant": job.variant, "seed": job.seed, "log": str(job.log)} for job in failed
        ]
    }
    if study.tunes:
        outcome["tuned"] = _tune(study, arguments, out)
    return outcome


def _tune(study: "Study", arguments: Any, out: Path) -> dict[str, dict[str, Any]] | None:
    """What the seeds asked for chose; an earlier start of the study may have asked for more."""
    from lpa.errors import UserError
    from lpa.study.results.study_results import read_study, short_axes, write_tuned

    result = read_study(out / f"{study.name}-{study.scale}.json", arguments.seeds)
    by_variant = f"{arguments.name}-" if arguments.tune else ""
    tuned_file = out / f"tuned-{by_variant}{study.scale}.yaml"
    tuned = None
    try:
        tuned = write_tuned(result, tuned_file)
    except UserError as error:  # runs failed, which the exit code tells
        print(f"lpa: nothing tuned: {error}", file=sys.stderr)
    if not arguments.json:
        if tuned is not None:
            print(f"tuned: {tuned} in {tuned_file}")
        for placement, name, value in short_axes(result):
            print(f"{placement}: {name} {value:g} lies at the end of what was tried")
    return tuned
