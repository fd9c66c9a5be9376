"""Which studies of rivals may be compared with each other (docs/protocol.md)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lpa.study.design.study_index import StudyIndex

# What sets the length of a run, and what says nothing about its training.
_OF_LENGTH = ("train.steps", "train.tokens", "train.eval_every", "optim.warmup_steps")
_OF_CHECKPOINTS = "checkpoint."


def is_family(index: StudyIndex) -> bool:
    """Whether the variants of a study are compared as one family, corrected for their number."""
    return index.name == "rivals" and not any(variant.tunes for variant in index.variants)


def are_comparable(one: StudyIndex, other: StudyIndex) -> bool:
    """Whether two studies of rivals differ in the length of training and in tuned settings at most."""
    return _terms(one) == _terms(other)


def _terms(index: StudyIndex) -> tuple[Any, ...]:
    base = {
        name: value
        for name, value in index.base.items()
        if name not in _OF_LENGTH and not name.startswith(_OF_CHECKPOINTS)
    }
    return index.scale, index.split, index.data_hashes, base


def join_families(
    studies: Sequence[tuple[StudyIndex, list[Path]]],
) -> list[tuple[StudyIndex, list[Path]]]:
    """Studies and their directories, with a family whose arms several directories hold as one study."""
    joined: list[tuple[StudyIndex, list[Path]]] = []
    for index, directories in studies:
        for number, (other, earlier) in enumerate(joined):
            if _are_one_family(other, index):
                joined[number] = _join(other, index), [*earlier, *directories]
                break
        else:
            joined.append((index, directories))
    return joined


def _are_one_family(one: StudyIndex, other: StudyIndex) -> bool:
    """Whether two studies are comparable, and the runs that both name are the same ones."""
    ours, theirs = _runs(one), _runs(other)
    shared = ours.keys() & theirs.keys()
    same = bool(shared) and all(ours[key] == theirs[key] for key in shared)
    return same and is_family(one) and is_family(other) and are_comparable(one, other)


def _runs(index: StudyIndex) -> dict[tuple[str, int], str]:
    return {(run.variant, run.seed): run.run for run in index.runs}


def _join(one: StudyIndex, other: StudyIndex) -> StudyIndex:
    """A study of the variants and runs of both."""
    names, runs = {variant.name for variant in one.variants}, _runs(one)
    return replace(
        one,
        seeds=max(one.seeds, other.seeds),
        variants=[*one.variants, *(v for v in other.variants if v.name not in names)],
        runs=[*one.runs, *(run for run in other.runs if (run.variant, run.seed) not in runs)],
    )
