"""Which fields of the configuration may change when a run is resumed."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from lpa.errors import UserError
from lpa.storage.records import YamlLoader, read_yaml
from lpa.train.config import RunConfig

# These change where a run stops, what is kept and who computes it, never the weights beyond rounding.
_MAY_CHANGE = {
    "data.path",  # data may move; its tokens and tokenizer are compared by hash instead
    "distill.teacher",  # so may a teacher
    # `train.steps` and `train.batch_size`, which are compared, say the same.
    "train.tokens",
    "train.batch_tokens",
    "data.num_workers",
    "data.verify",
    "model.attn_implementation",
    "train.micro_batch_size",
    "train.stop_at",
    "train.max_seconds",
    "train.on_nonfinite",
    "train.log_every",
    "train.loggers",
    "train.project",
    "train.eval_every",
    "train.eval_tokens",
    "train.sample_every",
    "train.sample_prompt",
    "train.sample_tokens",
}
_SECTIONS_THAT_MAY_CHANGE = ("checkpoint.", "parallel.")

# What a user cannot set but a run may not change either.
HASHED_FIELDS = ("data.tokens", "data.tokenizer", "distill.weights")


def read_saved_config(path: Path) -> dict[str, Any]:
    """The sections of a run's `config.yaml`, as plain values.

    Raises:
        UserError: it is missing, no YAML of plain values, or has no sections.
    """
    if not path.exists():
        raise UserError(f"--resume: {path.parent} is not a run directory (no {path.name})")
    return read_yaml(path, dict[str, dict[str, Any]])


def with_saved_choices(current: RunConfig, saved: dict[str, Any]) -> RunConfig:
    """The precision and context that a run began with, where `auto` and 0 leave the choice.

    Args:
        current: the run as it is asked for now.
        saved: the run's `config.yaml`.
    """
    began_with = saved.get("train", {}).get("dtype")
    if current.train.dtype == "auto" and began_with in ("float32", "bfloat16"):
        current = current.with_dtype(began_with)
    seq_len = saved.get("data", {}).get("seq_len")
    return current.with_seq_len(seq_len) if isinstance(seq_len, int) else current


def check_same_config(
    saved: dict[str, Any], current: RunConfig, *, allowed: Collection[str] = ()
) -> None:
    """Refuses to resume with a configuration that differs from the run's own.

    Args:
        saved: the run's `config.yaml`.
        current: what it is asked to go on with.
        allowed: fields that may differ all the same, such as `optim.lr`.

    Raises:
        UserError: naming the fields that differ, or a field in `allowed` that there is not.
    """
    after = _flatten(yaml.load(current.to_yaml(), YamlLoader))
    before = _defaults() | _flatten(saved)  # a field that there was not yet has its default
    for name in allowed:
        if name not in before | after and name not in HASHED_FIELDS:
            raise UserError(
                f"--allow-change: got {name}; expected fields such as optim.lr, or "
                f"{' or '.join(HASHED_FIELDS)}"
            )
    check_unchanged(
        {
            name: (before.get(name), after.get(name))
            for name in sorted(before.keys() | after.keys())
        },
        allowed=allowed,
    )


def check_unchanged(fields: dict[str, tuple[Any, Any]], *, allowed: Collection[str]) -> None:
    """Refuse values, before and now, that differ and may not.

    Raises:
        UserError: naming each such field with both values.
    """
    differences = [
        f"{name} was {before}, now {after}"
        for name, (before, after) in fields.items()
        if before != after and not _may_change(name) and name not in allowed
    ]
    if differences:
        raise UserError(
            f"--resume: the run began with another configuration: {'; '.join(differences)}; "
            "--allow-change FIELD resumes anyway"
        )


def check_restarts(saved: dict[str, Any], current: RunConfig, step: int) -> None:
    """Refuse another period of ReLoRA once one is over, before or now: its states count from there.

    Args:
        saved: the run's `config.yaml`.
        current: the run as it is asked for now.
        step: that it resumes from.

    Raises:
        UserError: the period differs.
    """
    before, after = saved.get("optim", {}), current.optim
    if after.name != "relora" or before.get("name") != "relora":
        return
    period, changed = before.get("restart_every"), after.restart_every
    if isinstance(period, int) and period != changed and step > min(period, changed or 1):
        raise UserError(
            f"--resume: optim.restart_every was {period}, now {changed}; expected {period} at step {step}, "
            "as relora has merged already or would have; start a new run with another --out"
        )


def _may_change(name: str) -> bool:
    return name in _MAY_CHANGE or name.startswith(_SECTIONS_THAT_MAY_CHANGE)


def _defaults() -> dict[str, Any]:
    return _flatten(yaml.load(RunConfig.from_dict({"data": {"path": "."}}).to_yaml(), YamlLoader))


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, fields in tree.items()
        for name, value in fields.items()
    }
