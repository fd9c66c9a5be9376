"""Which studies of rivals may be compared with each other (docs/protocol.md)."""

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
    return index.scale, index.baseline, index.split, index.data_hashes, base
