"""Which checkpoint a run resumes from: one choice, by the main process, for all.

Processes may see a shared directory differently for a moment. If each chose for itself, they could mix the
weights of two steps.
"""

import warnings
from functools import partial
from pathlib import Path

from lpa.errors import LPAWarning, UserError
from lpa.train.checkpoint import store
from lpa.train.distributed.process_group import (
    World,
    all_gather_objects,
    run_on_all_ranks,
    run_on_main,
)


def list_candidates(run: Path, checkpoint: bool | Path) -> list[Path]:
    """The checkpoints to resume from, best first.

    Args:
        checkpoint: the one that was asked for; True: the latest.

    Raises:
        UserError: there is none, or the one asked for is not of this run.
    """
    if isinstance(checkpoint, Path):
        if checkpoint.resolve().parent != store.checkpoints_directory(
            run
        ).resolve() or not store.is_checkpoint_name(checkpoint):
            raise UserError(
                f"--resume: got {checkpoint}; expected a checkpoint of the run, such as "
                f"{store.checkpoint_path(run, 100)}"
            )
        if not checkpoint.is_dir():
            raise UserError(f"--resume: {checkpoint}: no such checkpoint")
        return [checkpoint]
    found = store.resumable_checkpoints(run)
    if not found:
        raise UserError(
            f"--resume: {run}: has no checkpoint that is complete; start a new run with another --out"
        )
    return found


def find_intact(candidates: list[Path], world: World) -> tuple[Path, dict[str, str]]:
    """The first checkpoint that is intact; the main process warns of those before it.

    Args:
        candidates: the same in every process.

    Returns:
        The checkpoint, and the identity that it was saved with (`store.CheckpointManifest.fingerprints`).

    Raises:
        DamagedCheckpointError: none is intact.
    """
    for path in candidates:
        manifest = run_on_main(partial(store.read_manifest, path))
        damage = _find_damage(path, manifest, world)
        if damage is None:
            return path, manifest.fingerprints
        if path == candidates[-1]:
            run_on_all_ranks(partial(_refuse, damage))
        if world.is_main:
            warnings.warn(
                f"{damage}; resuming from the checkpoint before it", LPAWarning, stacklevel=2
            )
    raise AssertionError("the last candidate is intact or refused")


def _find_damage(path: Path, manifest: store.CheckpointManifest, world: World) -> str | None:
    """What a process finds wrong with a checkpoint, the same in all; each reads some of its files."""
    own_files = sorted(manifest.files)[world.rank :: world.size]

    def check() -> str | None:
        try:
            store.check_names(path, manifest.files)
            store.check_files(path, {name: manifest.files[name] for name in own_files})
        except store.DamagedCheckpointError as error:
            return str(error)
        return None

    return next(filter(None, all_gather_objects(run_on_all_ranks(check))), None)


def _refuse(damage: str) -> None:
    raise store.DamagedCheckpointError(damage)
