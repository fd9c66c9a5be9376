"""What a tuning chose, and whether it could choose."""

import math
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from lpa.errors import UserError
from lpa.storage.files import write_text_atomic
from lpa.study.execution.job import is_divergence
from lpa.study.results.study_results import StudyResult, VariantRow

_PLACEMENT = "model.placement"


def write_tuned(result: StudyResult, path: Path) -> dict[str, dict[str, Any]]:
    """The settings of `tuned_rows`, as `lpa study --tuned` reads them.

    Raises:
        UserError: a lost trial, or a placement or variant of which no setting has all its runs; nothing is
            written, as what is tuned would be compared with what is not.
    """
    check_no_trial_lost(result)
    overrides, groups = _overrides(result), _tuned_groups(result)
    rows = tuned_rows(result)
    for group in set(groups.values()) - rows.keys():
        raise UserError(
            f"{result.place}: no setting of {result.tuned_kind} {group} has finished all its runs"
        )
    by_variant = result.tuned_kind == "variant"
    tuned = {
        group: {
            key: value
            for key, value in overrides[row.variant].items()
            if (key == "optim.lr" if by_variant else key != _PLACEMENT)
        }
        for group, row in rows.items()
    }
    write_text_atomic(path, yaml.safe_dump(tuned, sort_keys=False))
    return tuned


def lost_trials(result: StudyResult) -> list[str]:
    """The runs of a tuning that are missing though they did not diverge, each with its reason."""
    return [
        f"{row.variant} with seed {seed} ({row.failed.get(seed, 'no failure recorded')})"
        for row in result.rows
        for seed in row.missing
        if not is_divergence(row.failed.get(seed, ""))
    ]


def check_no_trial_lost(result: StudyResult) -> None:
    """Refuse a tuning with lost trials, any of which might be the best.

    Raises:
        UserError: there are some.
    """
    if lost := lost_trials(result):
        raise UserError(
            f"{result.place}: trials are not finished and did not diverge: {'; '.join(lost)}; start the "
            "study again to resume them"
        )


def tuned_rows(result: StudyResult) -> dict[str, VariantRow]:
    """The setting with the lowest validation perplexity, by placement or by the variant that it tunes.

    The test split stays unseen.

    Only variants of which every run is finished: one that diverged with some seed is not the best.
    """
    groups = _tuned_groups(result)
    best: dict[str, VariantRow] = {}
    for row in result.rows:
        group = groups[row.variant]
        if row.validation is not None and math.isfinite(row.validation) and not row.missing:
            other = best.get(group)
            if other is None or row.validation < (other.validation or math.inf):
                best[group] = row
    return best


def short_axes(result: StudyResult) -> list[tuple[str, str, float]]:
    """Group, field and value of each tuned setting at the end of an axis of three values or more.

    A group is a placement, or the variant that is tuned.
    """
    overrides, groups = _overrides(result), _tuned_groups(result)
    measured = [row.variant for row in result.rows if row.validation is not None]
    found = []
    for group, row in tuned_rows(result).items():
        for name, value in overrides[row.variant].items():
            if not _is_number(value):
                continue
            values = (
                overrides[other].get(name, result.index.base.get(name))
                for other in measured
                if groups[other] == group
            )
            tried = {other for other in values if _is_number(other)}
            if len(tried) > 2 and value in (min(tried), max(tried)):
                found.append((group, name, value))
    return found


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _overrides(result: StudyResult) -> dict[str, dict[str, Any]]:
    return {variant.name: variant.overrides for variant in result.index.variants}


def _tuned_groups(result: StudyResult) -> dict[str, str]:
    """Variant -> what it is a setting of."""
    return {
        variant.name: variant.tunes or str(variant.overrides.get(_PLACEMENT))
        for variant in result.index.variants
    }
