"""The grids of studies, their scales and the claims of the paper, as they are declared in `study/grids/`."""

from importlib.resources import files
from typing import Any

import yaml

from lpa.errors import UserError, expected_one_of
from lpa.model.configuration_lpa import PLACEMENTS

STUDIES = ("placement", "rank", "sublayers", "surplus", "scale", "tuning", "recipe", "rivals")
SCALES = ("tiny", "femto", "pico", "nano", "micro", "130m", "370m", "3b")


def read_grid(name: str) -> dict[str, Any]:
    """A grid as it is declared.

    Raises:
        UserError: there is none of this name.
    """
    if name not in STUDIES:
        raise UserError(f"study: got {name!r}; {expected_one_of(name, STUDIES)}")
    return read_grid_file(name)


def read_claims() -> dict[str, Any]:
    """What the paper says, by study, and its `source`."""
    return read_grid_file("claims")


def scale_vocab_size(scale: str) -> int:
    """The vocabulary that a scale is meant for."""
    return read_grid_file("scales")[scale]["vocab_size"]


def tuned_names(study: str) -> tuple[str, ...]:
    """What the settings of a file for `--tuned` go by: placements, or the variants of the study."""
    grid = read_grid(study)
    return tuple(grid["variants"]) if is_tuned_by_variant(grid) else PLACEMENTS


def is_tuned_by_variant(grid: dict[str, Any]) -> bool:
    return grid.get("tuned_by") == "variant"


def read_grid_file(name: str) -> dict[str, Any]:
    return yaml.safe_load((files("lpa.study") / "grids" / f"{name}.yaml").read_text("utf-8"))
