"""A run from its beginning, or from where it was left."""

import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lpa.errors import LPAWarning, UserError
from lpa.files import write_text
from lpa.locks import hold_directory
from lpa.outputs import MODEL, Marker, check_output, content_of, read_marker, remove
from lpa.train import checkpoint_store as store
from lpa.train.changes import check_same, read_saved_config, refuse_changes
from lpa.train.config import RunConfig
from lpa.train.distributed import (
    LostRankError,
    OtherRankFailedError,
    World,
    barrier,
    is_restart,
    join_world,
    launch_id,
    leave_world,
    missing_ranks,
    together,
)
from lpa.train.loggers import IDS_FILE
from lpa.train.metrics_file import DAMAGED_FILE, METRICS_FILE
from lpa.train.result import RESULT_FILE, RunResult, RunStopped
from lpa.train.sampling import SAMPLES_FILE
from lpa.train.starting import START_FILE
from lpa.train.trainer import BEST, FINAL, Trainer

CONFIG_FILE = "config.yaml"
_LAUNCH_FILE = ".launch"

# A run directory as its marker tells it: `--overwrite` removes these files, and refuses to with any other.
_MARKER = Marker(
    "a training run",
    [
        *(CONFIG_FILE, _LAUNCH_FILE, START_FILE, RESULT_FILE, METRICS_FILE, DAMAGED_FILE),
        *(SAMPLES_FILE, IDS_FILE, "events.out.tfevents.*", "wandb/*", "test.json", ".*.tmp"),
        *("checkpoints", "checkpoints/latest.json", "checkpoints/step-[0-9]*/*"),
        *("checkpoints/.step-[0-9]*", "checkpoints/.latest.json.*", f"{FINAL}/*", f"{BEST}/*"),
        *(f".{FINAL}.*", f".{BEST}.*"),
    ],
)
# What a process that was killed while it wrote a model or a record leaves behind.
_LEFTOVERS = (f".{FINAL}.*", f".{BEST}.*", ".*.tmp")


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool | Path = False,
    overwrite: bool = False,
    allow_change: Collection[str] = (),
) -> RunResult | RunStopped:
    """Train as `config` says and leave a run directory.

    SIGINT and SIGTERM end the run after the step in hand, with a checkpoint; one that comes after the
    last step and evaluation has its usual effect once the result is complete. Under torchrun every
    process calls this. One that torchrun starts anew in place of one that died goes on with the run
    that the same torchrun began.

    Args:
        config: the run.
        out: its directory.
        resume: go on from the latest intact checkpoint in `out`, or from the given one; in the same
            layout of processes the result is bit for bit that of a run that was never stopped.
        overwrite: delete an earlier run in `out`.
        allow_change: fields in which the configuration may differ from the one the run began with.

    Raises:
        RunInterruptedError: a signal ended it.
        UserError: bad input, named, before anything is written; a loss that is not finite; a disk
            that is full.
        OtherRankFailedError: that happened in another process, which says so.
        LostRankError: another process died.
    """
    world = join_world(config.train.device, timeout=config.parallel.timeout)
    try:
        with _hold(out, world, resume=bool(resume)):
            if is_restart() and together(lambda: _began_here(out)):
                resume, overwrite = bool(store.resumable(out)), True
            if resume:
                return _resume(config, out, world, resume, allow_change)
            return _begin(config, out, world, overwrite)
    # What torch raises when a process no longer answers; also much else, so ask who is there.
    except RuntimeError as error:
        missing = missing_ranks() if world.size > 1 else []
        if not missing:
            raise
        raise LostRankError(
            f"rank {world.rank} ends, as rank {', '.join(map(str, missing))} is gone"
        ) from error
    finally:
        leave_world()


# How long a process that torchrun started anew waits for the one that it replaces to be gone.
_RESTART_SECONDS = 30.0


@contextmanager
def _hold(out: Path, world: World, *, resume: bool) -> Iterator[None]:
    """Keep the run directory for this run; the main process holds it for all."""
    if resume and not out.is_dir():
        raise UserError(f"--resume: {out}: no such run directory; start it without --resume")
    wait = _RESTART_SECONDS if is_restart() else 0.0
    with ExitStack() as held:
        holding = hold_directory(out, wait_seconds=wait)
        together(lambda: held.enter_context(holding) if world.is_main else None)
        yield


def _begin(config: RunConfig, out: Path, world: World, overwrite: bool) -> RunResult | RunStopped:
    together(lambda: _check_new_run(out, overwrite))
    trainer = together(lambda: Trainer(config, out, world))
    barrier()  # nobody looks at `out` any more
    if world.is_main:
        remove(content_of(out))
        _MARKER.save(out)
        write_text(out / CONFIG_FILE, config.to_yaml())
        if trainer.start is not None:
            trainer.start.save(out)
        _sign(out)
    return trainer.run()


def _resume(
    config: RunConfig,
    out: Path,
    world: World,
    start: bool | Path,
    allow_change: Collection[str],
) -> RunResult | RunStopped:
    def check() -> RunResult | None:
        saved = read_saved_config(out / CONFIG_FILE)
        result = _finished_result(out, config.train.steps)
        if result is None:
            _checkpoints_to_try(out, start)
            _check_models(out)
        check_same(saved, config, allow=allow_change)
        return result

    finished = together(check)
    if finished is not None:
        return finished
    trainer = together(lambda: Trainer(config, out, world, resumed=True))
    path = _load_intact(trainer, out, start, allow_change)
    barrier()
    if world.is_main:
        remove({path for pattern in _LEFTOVERS for path in out.glob(pattern)})
        _MARKER.save(out)
        store.remember_latest(out, store.step_of(path))
        write_text(out / CONFIG_FILE, config.to_yaml())
        _sign(out)
    return trainer.run()


def _finished_result(out: Path, steps: int) -> RunResult | None:
    """The result of a run that has made so many steps and whose model is there; None where it has not."""
    if not (out / RESULT_FILE).exists() or read_marker(out / FINAL) is None:
        return None
    result = RunResult.load(out)
    return result if result.steps == steps else None


def _load_intact(
    trainer: Trainer, out: Path, start: bool | Path, allow_change: Collection[str]
) -> Path:
    """Load the checkpoint asked for, or the latest that is intact; say loudly what was passed over."""
    speaks = trainer.world.is_main
    for left in store.unfinished(out) if speaks else []:
        _warn(f"{left}: is no complete checkpoint and is ignored")
    candidates = _checkpoints_to_try(out, start)
    for path in candidates:
        try:
            identity = trainer.load(path)
        except (store.DamagedCheckpointError, OtherRankFailedError) as error:
            if path == candidates[-1]:
                raise
            if isinstance(error, store.DamagedCheckpointError):
                _warn(f"{error}; going on from the checkpoint before it")
            continue
        own = trainer.identity
        refuse_changes(
            {name: (identity.get(name), own.get(name)) for name in {**identity, **own}},
            allow=allow_change,
        )
        return path
    raise AssertionError("the last candidate is loaded or raises")


def _checkpoints_to_try(out: Path, start: bool | Path) -> list[Path]:
    """Best first.

    Raises:
        UserError: there is none, or the one asked for is not of this run.
    """
    if isinstance(start, Path):
        if start.resolve().parent != store.folder(out).resolve() or not store.has_name(start):
            raise UserError(
                f"--resume: got {start}; expected a checkpoint of the run, such as "
                f"{store.checkpoint_path(out, 100)}"
            )
        if not start.is_dir():
            raise UserError(f"--resume: {start}: no such checkpoint")
        return [start]
    found = store.resumable(out)
    if not found:
        raise UserError(
            f"--resume: {out}: has no checkpoint that is complete; start anew with another --out"
        )
    return found


def _check_new_run(out: Path, overwrite: bool) -> None:
    if not overwrite and (out / CONFIG_FILE).exists():
        raise UserError(
            f"--out {out}: already holds a run; pass --resume to go on with it, "
            "--overwrite to delete it, or choose a new directory"
        )
    check_output(out, _MARKER.kind, overwrite=overwrite)
    _check_models(out)


def _check_models(out: Path) -> None:
    """Refuse to write models where files lie that this command did not write."""
    for name in (FINAL, BEST):
        if (out / name).is_dir() and read_marker(out / name) is not None:
            check_output(out / name, MODEL, overwrite=True)


def _sign(out: Path) -> None:
    """Remember which launch this run belongs to."""
    name = launch_id()
    if name is not None:
        write_text(out / _LAUNCH_FILE, name + "\n")


def _began_here(out: Path) -> bool:
    """Whether the launch that this process belongs to has worked on `out` before."""
    file = out / _LAUNCH_FILE
    return file.is_file() and file.read_text(errors="replace").strip() == launch_id()


def _warn(message: str) -> None:
    warnings.warn(message, LPAWarning, stacklevel=3)
