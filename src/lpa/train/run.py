"""A run from its beginning, or from where it was left."""

import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lpa.device import dtype_name, resolve_dtype
from lpa.errors import LPAWarning, UserError
from lpa.storage.files import write_text_atomic
from lpa.storage.locks import lock_directory, read_holder
from lpa.storage.outputs import (
    MODEL,
    Marker,
    check_output_directory,
    read_marker,
    remove,
    remove_content,
)
from lpa.storage.run_directory import (
    BEST_DIRECTORY,
    CHECKPOINTS_DIRECTORY,
    CONFIG_FILE,
    DAMAGED_METRICS_FILE,
    FINAL_DIRECTORY,
    INITIAL_WEIGHTS_FILE,
    LATEST_CHECKPOINT_FILE,
    LAUNCH_FILE,
    LOGGER_IDS_FILE,
    METRICS_FILE,
    RESULT_FILE,
    SAMPLES_FILE,
    SCORES_DIRECTORY,
    TEST_FILE,
)
from lpa.train.checkpoint import store
from lpa.train.checkpoint.best_model import holds_best, remove_best
from lpa.train.checkpoint.resume_checks import (
    check_restarts,
    check_same_config,
    check_unchanged,
    read_saved_config,
    with_saved_choices,
)
from lpa.train.checkpoint.selection import find_intact, list_candidates
from lpa.train.config import RunConfig
from lpa.train.distributed.launch import agent_id
from lpa.train.distributed.process_group import (
    LostRankError,
    World,
    all_gather_objects,
    barrier,
    destroy_process_group,
    init_process_group,
    is_of_an_exchange,
    missing_ranks,
    run_on_all_ranks,
    run_on_main,
)
from lpa.train.init_weights import with_source_seq_len
from lpa.train.logging.samples import drop_samples_after
from lpa.train.result import RunResult, RunStopped
from lpa.train.trainer import Trainer

# A run directory as its marker tells it: `--overwrite` removes these files, and refuses to with any other.
_MARKER = Marker(
    "a training run",
    [
        *(
            CONFIG_FILE,
            LAUNCH_FILE,
            INITIAL_WEIGHTS_FILE,
            RESULT_FILE,
            METRICS_FILE,
            DAMAGED_METRICS_FILE,
        ),
        *(SAMPLES_FILE, LOGGER_IDS_FILE, "events.out.tfevents.*", "wandb/*", TEST_FILE, ".*.tmp"),
        f"{SCORES_DIRECTORY}/*.json",
        CHECKPOINTS_DIRECTORY,
        *(f"{CHECKPOINTS_DIRECTORY}/{name}" for name in ("step-[0-9]*/*", ".step-[0-9]*")),
        f"{CHECKPOINTS_DIRECTORY}/{LATEST_CHECKPOINT_FILE}",
        f"{CHECKPOINTS_DIRECTORY}/.{LATEST_CHECKPOINT_FILE}.*",
        *(f"{name}/*" for name in (FINAL_DIRECTORY, BEST_DIRECTORY)),
        *(f".{name}.*" for name in (FINAL_DIRECTORY, BEST_DIRECTORY)),
    ],
)
# What a process that was killed while it wrote a model or a record leaves behind.
_LEFTOVERS = (f".{FINAL_DIRECTORY}.*", f".{BEST_DIRECTORY}.*", ".*.tmp")


def train(
    config: RunConfig | str | Path,
    out: str | Path,
    *,
    resume: bool | str | Path = False,
    overwrite: bool = False,
    allow_change: Collection[str] = (),
    show_bar: bool = False,
) -> RunResult | RunStopped:
    """Trains a model as `config` says and writes a run directory.

    SIGINT and SIGTERM end the run after the current step, with a checkpoint; one that comes after the
    last step and evaluation has its usual effect once the result is complete. In a thread beside the
    main one, as of a web application or an executor, signals have their usual effect throughout.
    Under torchrun every process calls this. A process that torchrun restarts in place of one that
    died resumes the run that the same torchrun started.

    Progress goes to the logger `lpa`, at level INFO.

    Args:
        config: the configuration, or the path of a complete recipe (YAML).
        out: its directory.
        resume: resume from the latest intact checkpoint in `out`, or from the given one; in the same
            layout of processes the result is bit for bit that of a run that was never stopped.
        overwrite: delete an earlier run in `out`.
        allow_change: fields in which the configuration may differ from the one the run began with.
        show_bar: draw a progress bar on standard error, where that is a terminal.

    Returns:
        A `RunResult`; or a `RunStopped` where `train.stop_at` or `train.max_seconds` ended the run.

    Raises:
        RunInterruptedError: SIGINT or SIGTERM ended the run, which left a checkpoint.
        UserError: the input is not accepted (nothing is written then), a loss or gradient is not finite,
            or the disk is full.
        OtherRankFailedError: another process failed with a UserError, which it reports.
        LostRankError: another process died.

    Example:
        config = lpa.RunConfig.from_dict({"data": {"path": "data"}, "train": {"steps": 100}})
        result = lpa.train(config, "runs/lpa")
    """
    if allow_change and not resume:
        raise UserError("--allow-change: works only with --resume")
    out = Path(out)
    config = config.checked() if isinstance(config, RunConfig) else RunConfig.load(config)
    if isinstance(resume, str):
        resume = Path(resume)
    parallel = config.parallel
    world = init_process_group(
        config.train.device, timeout=parallel.timeout, long_timeout=parallel.long_timeout
    )
    try:
        agents = sorted(set(filter(None, all_gather_objects(agent_id()))))
        restarted = _any_rank_finds(lambda: not _recorded_agents(out).isdisjoint(agents))
        with _lock_run(out, world, resume=bool(resume), restarted=restarted):
            if restarted:
                resume = _any_rank_finds(lambda: _can_resume(out))
                overwrite = True
            if resume:
                return _resume_run(config, out, world, agents, resume, allow_change, show_bar)
            return _start_run(config, out, world, agents, overwrite, show_bar)
    # What torch raises when a process no longer answers; ask who is there.
    except RuntimeError as error:
        missing = missing_ranks() if world.size > 1 and is_of_an_exchange(error) else []
        if not missing:
            raise
        raise LostRankError(
            f"rank {world.rank} ends, as rank {', '.join(map(str, missing))} is gone"
        ) from error
    finally:
        destroy_process_group()


# How long a process that torchrun restarted waits for the one that it replaces to be gone.
_RESTART_SECONDS = 30.0


@contextmanager
def _lock_run(out: Path, world: World, *, resume: bool, restarted: bool) -> Iterator[None]:
    """Keep the run directory for this run; the main process holds it for all."""
    if resume and not out.is_dir():
        raise UserError(f"--resume: {out}: no such run directory; start it without --resume")
    wait = _RESTART_SECONDS if restarted else 0.0
    with ExitStack() as held:
        holding = lock_directory(out, wait_seconds=wait)
        run_on_all_ranks(lambda: held.enter_context(holding) if world.is_main else None)
        if world.size > 1:
            _check_shared(out, world)
        yield


# How long a shared file system may take to show what another machine has just written.
_SHARED_SECONDS = 60.0


def _check_shared(out: Path, world: World) -> None:
    """Refuse a run directory that each machine has for itself: no checkpoint in it would be whole."""
    holder = all_gather_objects(read_holder(out))[0]

    def check() -> None:
        deadline = time.monotonic() + _SHARED_SECONDS
        while read_holder(out) != holder:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--out {out}: rank {world.rank} does not see what rank 0 wrote there; expected a "
                    "directory that all machines share"
                )
            time.sleep(0.1)

    run_on_all_ranks(check)


def _start_run(
    config: RunConfig,
    out: Path,
    world: World,
    agents: Collection[str],
    overwrite: bool,
    show_bar: bool,
) -> RunResult | RunStopped:
    run_on_all_ranks(lambda: _check_run_directory(out, overwrite))
    config = run_on_all_ranks(lambda: with_source_seq_len(config))
    config = _with_dtype_for_all_ranks(config, world)
    trainer = Trainer(config, out, world, show_bar=show_bar)
    barrier()  # nobody looks at `out` any more
    if world.is_main:
        remove_content(out)
        _MARKER.save(out)
        _record_launch(out, agents)
        write_text_atomic(out / CONFIG_FILE, config.to_yaml())
        if trainer.initial_weights is not None:
            trainer.initial_weights.save(out)
    return trainer.run()


def _resume_run(
    config: RunConfig,
    out: Path,
    world: World,
    agents: Collection[str],
    checkpoint: bool | Path,
    allow_change: Collection[str],
    show_bar: bool,
) -> RunResult | RunStopped:
    saved = run_on_main(lambda: read_saved_config(out / CONFIG_FILE))
    config = run_on_all_ranks(lambda: with_source_seq_len(with_saved_choices(config, saved)))

    def find_work() -> RunResult | list[Path]:
        # From a checkpoint that is named, a finished run trains again.
        result = None if isinstance(checkpoint, Path) else _finished_result(out)
        if result is not None and result.steps == config.train.steps:
            return result
        candidates = list_candidates(out, checkpoint)
        _check_models(out)
        return candidates

    work = run_on_main(find_work)
    run_on_all_ranks(lambda: check_same_config(saved, config, allowed=allow_change))
    if isinstance(work, RunResult):
        return work
    trainer = Trainer(config, out, world, resumed=True, show_bar=show_bar)
    path = _load_intact(trainer, work, allow_change)
    run_on_all_ranks(lambda: _check_steps(trainer.state.step, config.train.steps, path))
    run_on_all_ranks(lambda: check_restarts(saved, config, trainer.state.step))
    has_best = _check_best(trainer)
    barrier()
    if world.is_main:
        if (
            not has_best and config.checkpoint.keep_best
        ):  # or it stays, and says of which step it is
            remove_best(out)
        # What was found of the model before it is trained further.
        for found in (RESULT_FILE, TEST_FILE, f"{SCORES_DIRECTORY}/*.json"):
            remove(set(out.glob(found)))
        drop_samples_after(out, trainer.state.step - trainer.state.sample_pending)
        remove({path for pattern in _LEFTOVERS for path in out.glob(pattern)})
        _MARKER.save(out)
        store.go_back_to(out, store.step_of(path))
        write_text_atomic(out / CONFIG_FILE, config.to_yaml())
        _record_launch(out, agents)
    return trainer.run()


def _can_resume(out: Path) -> bool:
    """Whether there is a checkpoint, or the result of a run that needed none."""
    return bool(store.resumable_checkpoints(out)) or _finished_result(out) is not None


def _check_best(trainer: Trainer) -> bool:
    """Whether `best/` is the model of the best loss so far; forget a loss that no later one compares with."""
    state, data = trainer.state, trainer.data.validation_fingerprint
    if state.best_data not in (None, data):
        if trainer.world.is_main:
            _warn(
                f"--resume: the validation split is not that of the best loss so far, of step "
                f"{state.best_step}; the next evaluation is the first that counts"
            )
        state.forget_best()
    has_best = run_on_main(lambda: holds_best(trainer.out, state))
    if not has_best and trainer.config.checkpoint.keep_best:
        state.forget_best()
    return has_best


def _check_steps(done: int, steps: int, checkpoint: Path) -> None:
    if done > steps:
        raise UserError(
            f"train.steps: got {steps}; expected at least {done}, the steps of {checkpoint}; or --resume "
            "an earlier checkpoint"
        )


def _with_dtype_for_all_ranks(config: RunConfig, world: World) -> RunConfig:
    """The run in one precision; `auto` is bfloat16 where every process has units for it."""
    if config.train.dtype != "auto":
        return config
    found = set(all_gather_objects(dtype_name(resolve_dtype("auto", world.device.type))))
    return config.with_dtype(found.pop() if len(found) == 1 else "float32")


def _finished_result(out: Path) -> RunResult | None:
    """The result of a finished run whose model is there; None where there is none."""
    if not (out / RESULT_FILE).exists() or read_marker(out / FINAL_DIRECTORY) is None:
        return None
    return RunResult.load(out)


def _load_intact(trainer: Trainer, candidates: list[Path], allow_change: Collection[str]) -> Path:
    """Load the first checkpoint that is intact, if what it was trained on is what the run trains on now."""
    for left in store.unfinished_checkpoints(trainer.out) if trainer.world.is_main else []:
        _warn(f"{left}: is no complete checkpoint and is ignored")
    path, fingerprints = find_intact(candidates, trainer.world)
    current = trainer.fingerprints
    run_on_all_ranks(
        lambda: check_unchanged(
            {
                name: (fingerprints.get(name), current.get(name))
                for name in {**fingerprints, **current}
            },
            allowed=allow_change,
        )
    )
    trainer.load(path)
    return path


def _check_run_directory(out: Path, overwrite: bool) -> None:
    if not overwrite and (out / CONFIG_FILE).exists():
        raise UserError(
            f"--out {out}: already holds a run; pass --resume to continue it, "
            "--overwrite to delete it, or choose a new directory"
        )
    check_output_directory(out, _MARKER.kind, overwrite=overwrite)
    _check_models(out)


def _check_models(out: Path) -> None:
    """Refuse to write models over files that this command did not write."""
    for name in (FINAL_DIRECTORY, BEST_DIRECTORY):
        if (out / name).is_dir() and read_marker(out / name) is not None:
            check_output_directory(out / name, MODEL, overwrite=True)


def _any_rank_finds(condition: Callable[[], bool]) -> bool:
    """Whether the condition holds in any process; all get the same answer."""
    return any(all_gather_objects(run_on_all_ranks(condition)))


def _recorded_agents(out: Path) -> set[str]:
    """The agents of the launch that worked on `out` last."""
    file = out / LAUNCH_FILE
    return set(file.read_text(errors="replace").splitlines()) if file.is_file() else set()


def _record_launch(out: Path, agents: Collection[str]) -> None:
    """Remember which launch this run belongs to; it may lose agents and get others."""
    if not agents:
        (out / LAUNCH_FILE).unlink(missing_ok=True)
        return
    recorded = _recorded_agents(out)
    known = recorded | set(agents) if not recorded.isdisjoint(agents) else set(agents)
    write_text_atomic(out / LAUNCH_FILE, "".join(f"{agent}\n" for agent in sorted(known)))


def _warn(message: str) -> None:
    warnings.warn(message, LPAWarning, stacklevel=3)
