"""Checkpoints as directories: complete once they have a manifest, and verified before use.

A checkpoint `step-00001000/` holds safetensors files and `manifest.json`, which lists each file with its
size and SHA-256 and carries a checksum of itself. It is written as `.step-00001000.partial` and renamed
after the manifest, so a process that dies leaves a directory that nothing takes for a complete one.
`latest.json` names the one written last. After going back to an earlier checkpoint, those of the abandoned
future may still be there; it lists them too, as the run may pass their steps.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lpa.errors import LPAWarning, UserError
from lpa.storage.files import file_sha256, sync, write_text_atomic
from lpa.storage.records import Count, parse_value, read_json
from lpa.storage.run_directory import (
    CHECKPOINT_MANIFEST_FILE,
    CHECKPOINTS_DIRECTORY,
    LATEST_CHECKPOINT_FILE,
)
from lpa.train.state import TrainState

_FORMAT = 2
_NAME = re.compile(r"step-(\d{8})")
_UNFINISHED = re.compile(r"\.step-\d{8}\.(partial|deleting)")


class DamagedCheckpointError(UserError):
    """A checkpoint whose files are not what was written."""


class OtherVersionError(UserError):
    """An intact checkpoint that this version cannot read."""


@dataclass
class StoredFile:
    """What the manifest says of a file."""

    bytes: Count
    sha256: str


@dataclass
class CheckpointManifest:
    """What the manifest of a checkpoint says.

    Attributes:
        fingerprints: field -> hash of what was trained on.
        torch: the version that wrote it.
        files: by name.
    """

    format: int
    state: TrainState
    fingerprints: dict[str, str]
    torch: str
    files: dict[str, StoredFile]


@dataclass
class _ManifestFile:
    """The file of a manifest: its content, and the checksum of that."""

    sha256: str
    content: dict[str, Any]


@dataclass
class _Latest:
    """What `latest.json` says.

    Attributes:
        step: of the checkpoint that was written last, or that the run went back to.
        abandoned: steps of checkpoints that do not lead to it.
    """

    step: Count
    abandoned: list[int] = field(default_factory=list)


def checkpoints_directory(run: Path) -> Path:
    """Where the checkpoints of a run are."""
    return run / CHECKPOINTS_DIRECTORY


def checkpoint_path(run: Path, step: int) -> Path:
    return checkpoints_directory(run) / f"step-{step:08d}"


def is_checkpoint_name(path: Path) -> bool:
    """Whether a path is named as a checkpoint is."""
    return _NAME.fullmatch(path.name) is not None


def step_of(path: Path) -> int:
    """The step that a checkpoint's name tells."""
    found = _NAME.fullmatch(path.name)
    assert found, f"{path} is named by checkpoint_path"
    return int(found[1])


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, lowest step first; those without an intact manifest are left out."""
    return sorted(
        path
        for path in checkpoints_directory(run).glob("step-*")
        if is_checkpoint_name(path) and _is_complete(path)
    )


def _is_complete(path: Path) -> bool:
    try:
        read_manifest(path)
    except DamagedCheckpointError:
        return False
    except OtherVersionError:
        pass
    return True


def resumable_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints to go on from, best first: the one written last, then those before it."""
    found = list_checkpoints(run)
    latest = _read_latest(run)
    if latest is None:
        return found[::-1]
    return [
        path
        for path in reversed(found)
        if step_of(path) <= latest.step and step_of(path) not in latest.abandoned
    ]


def _read_latest(run: Path) -> _Latest | None:
    """None where no checkpoint was written, or the file was lost. What a later version adds is left aside."""
    file = checkpoints_directory(run) / LATEST_CHECKPOINT_FILE
    try:
        said = read_json(file, dict[str, Any])
        known = {name: said[name] for name in ("step", "abandoned") if name in said}
        return parse_value(known, _Latest, where=file)
    except UserError:
        return None


def last_complete(run: Path) -> str:
    """Which checkpoint there is to resume from, as messages say it."""
    found = resumable_checkpoints(run)
    return f"the last complete checkpoint is {found[0]}" if found else "there is no checkpoint"


def unfinished_checkpoints(run: Path) -> list[Path]:
    """What saves that did not end left behind, and checkpoints without an intact manifest."""
    return sorted(
        path
        for path in checkpoints_directory(run).glob("*")
        if _UNFINISHED.fullmatch(path.name) or (is_checkpoint_name(path) and not _is_complete(path))
    )


def partial_path(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is until it is complete."""
    path = checkpoint_path(run, step)
    return path.with_name(f".{path.name}.partial")


def _final_path(partial: Path) -> Path:
    return partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))


def create_partial(partial: Path) -> None:
    """Make an empty directory to write a checkpoint into; what unfinished saves left is removed.

    What has the name of the checkpoint and is no whole one gets another name, and a warning says so.
    """
    path = _final_path(partial)
    if path.exists() and not _is_complete(path):
        _move_aside(path)
    for left in partial.parent.glob(".step-*"):
        if _UNFINISHED.fullmatch(left.name):
            shutil.rmtree(left)
    partial.mkdir(parents=True)


def _move_aside(path: Path) -> None:
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    os.replace(path, aside)
    warnings.warn(
        f"{path}: is not a complete checkpoint; renamed to {aside}", LPAWarning, stacklevel=2
    )


def write_manifest(
    run: Path, partial: Path, content: dict[str, Any], files: Mapping[str, StoredFile]
) -> Path:
    """Complete a checkpoint: write the manifest, rename, and remember it as the latest.

    Args:
        partial: started with `create_partial`, its files written and synced.
        content: what the manifest says beside the files; JSON.
        files: name -> what `file_checksum` says of it.

    Raises:
        OSError: this process does not see one of the files.
    """
    for name in files:
        if not (partial / name).is_file():
            raise FileNotFoundError(
                f"{partial / name}: is missing; expected a directory that all machines share"
            )
    expected_file = {name: asdict(file) for name, file in files.items()}
    manifest = {"format": _FORMAT, **content, "files": expected_file}
    write_text_atomic(
        partial / CHECKPOINT_MANIFEST_FILE,
        json.dumps({"sha256": content_digest(manifest), "content": manifest}, indent=1) + "\n",
    )
    sync(partial)
    path = _final_path(partial)
    if path.exists():  # of an abandoned future, or whole but not remembered as the latest
        _delete(path)
    os.replace(partial, path)
    sync(path.parent)
    step, before = step_of(path), _read_latest(run)
    _write_latest(run, step, set(before.abandoned if before else ()) - {step})
    return path


def go_back_to(run: Path, step: int) -> None:
    """Make a checkpoint the latest of its run, and abandon those that do not lead to it."""
    steps = set(map(step_of, list_checkpoints(run)))
    leading = set(map(step_of, resumable_checkpoints(run)))
    # Of what leads to a checkpoint of an abandoned future, nothing is known.
    kept = {other for other in leading if other <= step} if step in leading else {step}
    _write_latest(run, step, steps - kept)


def _write_latest(run: Path, step: int, abandoned: Iterable[int]) -> None:
    latest = asdict(_Latest(step, sorted(abandoned)))
    write_text_atomic(
        checkpoints_directory(run) / LATEST_CHECKPOINT_FILE, json.dumps(latest) + "\n"
    )


def delete_old_checkpoints(run: Path, keep_latest_k: int) -> None:
    """Delete complete checkpoints up to the latest one, all but the last `keep_latest_k`; nothing else."""
    for path in resumable_checkpoints(run)[keep_latest_k:]:
        _delete(path)


def remove_all(run: Path) -> None:
    """Delete the checkpoints that there are to resume from, and the directory if nothing else is in it."""
    delete_old_checkpoints(run, 0)
    if not list_checkpoints(run):  # else it says that those of an abandoned future do not count
        (checkpoints_directory(run) / LATEST_CHECKPOINT_FILE).unlink(missing_ok=True)
    with suppress(OSError):
        checkpoints_directory(run).rmdir()


def _delete(path: Path) -> None:
    """Rename first: a process that dies now leaves nothing that looks like a checkpoint."""
    deleted = path.with_name(f".{path.name}.deleting")
    os.replace(path, deleted)
    shutil.rmtree(deleted)


def file_checksum(path: Path) -> StoredFile:
    """Size and SHA-256 of a file, which is on the disk from then on."""
    sync(path)
    return StoredFile(path.stat().st_size, file_sha256(path))


def read_manifest(path: Path) -> CheckpointManifest:
    """What the manifest of a checkpoint says.

    Raises:
        DamagedCheckpointError: it is missing or altered.
        OtherVersionError: it is as written, by a version whose checkpoints have other fields.
    """
    file = path / CHECKPOINT_MANIFEST_FILE
    if path.is_dir() and not file.exists():
        raise DamagedCheckpointError(
            f"{path}: is no complete checkpoint (no {CHECKPOINT_MANIFEST_FILE})"
        )
    try:
        document = read_json(file, _ManifestFile)
        if document.sha256 != content_digest(document.content):
            raise UserError("its SHA-256 does not match its content")
    except UserError as error:
        reason = str(error).removeprefix(f"{file}: ")
        raise DamagedCheckpointError(f"{file}: is damaged ({reason})") from error
    try:
        found = document.content.get("format")
        if found != _FORMAT:
            raise UserError(f"has format {found}; this version reads {_FORMAT}")
        return parse_value(document.content, CheckpointManifest, where=file, field="content")
    except UserError as error:
        reason = str(error).removeprefix(f"{file}: ")
        raise OtherVersionError(
            f"{file}: was written by another version of lpa, which can resume from it ({reason})"
        ) from error


def check_names(path: Path, names: Iterable[str]) -> None:
    """Refuse a checkpoint without all the files of its manifest, or with others: outside of it, or links.

    Raises:
        DamagedCheckpointError: naming the file.
    """
    names = set(names)
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise DamagedCheckpointError(
                f"{path / CHECKPOINT_MANIFEST_FILE}: lists {name!r}; "
                "expected plain names of .safetensors files"
            )
        if (path / name).is_symlink():
            raise DamagedCheckpointError(f"{path / name}: is a link; expected a file")
        if not (path / name).is_file():
            raise DamagedCheckpointError(f"{path / name}: is missing; the checkpoint is damaged")
    for entry in path.iterdir():
        if entry.name not in names | {CHECKPOINT_MANIFEST_FILE}:
            raise DamagedCheckpointError(f"{entry}: does not belong to the checkpoint; remove it")


def check_file(path: Path, expected: StoredFile) -> None:
    """Compare a file with what its checkpoint's manifest says.

    Raises:
        DamagedCheckpointError: it is shorter or longer, or has other content.
    """
    if path.stat().st_size != expected.bytes:
        raise DamagedCheckpointError(
            f"{path}: has {path.stat().st_size:,} bytes of {expected.bytes:,}; "
            "the checkpoint is damaged"
        )
    if file_checksum(path).sha256 != expected.sha256:
        raise DamagedCheckpointError(
            f"{path}: its content is not what was written (SHA-256); the checkpoint is damaged"
        )


def check_files(path: Path, expected: Mapping[str, StoredFile]) -> None:
    """`check_file` for several files of a checkpoint."""
    for name, expected_file in expected.items():
        check_file(path / name, expected_file)


def content_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
