"""Settings found by tuning, read back for the studies that take them."""

from pathlib import Path
from typing import Any

from lpa.errors import UserError
from lpa.model.configuration_lpa import PLACEMENTS
from lpa.storage.records import read_yaml
from lpa.study.design.run_configs import run_config

# What `tuning` and its like may choose. Anything else would train one placement on other data, for longer or
# in another model than those that it is compared with.
_TUNABLE_FIELDS = (
    "optim.",
    "model.initializer_range",
    "model.initialization",
    "model.residual_scaling",
)


def read_tuned(path: Path, accepted: tuple[str, ...] = PLACEMENTS) -> dict[str, dict[str, Any]]:
    """Settings by placement, or by another name, as tuning writes them.

    Args:
        accepted: the names, see `tuned_names`.

    Raises:
        UserError: no such file, not one of that form, or a value that a run cannot have.
    """
    try:
        tuned = read_yaml(path, dict[str, dict[str, Any]])
    except UserError as error:
        raise UserError(f"--tuned {error}; expected what `tuning` writes") from error
    if not tuned:
        raise UserError(f"--tuned {path}: got no settings; expected those of {', '.join(accepted)}")
    for name, settings in tuned.items():
        if name not in accepted:
            what = "placement" if accepted == PLACEMENTS else "variant"
            raise UserError(f"--tuned {path}: got {what} {name!r}; expected {', '.join(accepted)}")
        for key in settings:
            if not key.startswith(_TUNABLE_FIELDS):
                raise UserError(
                    f"--tuned {path}: got {key} of {name}; expected {', '.join(_TUNABLE_FIELDS[1:])} "
                    "or one of optim, such as optim.lr"
                )
        try:
            run_config(settings)
        except UserError as error:
            raise UserError(f"--tuned {path}: {name}: {error}") from error
    return tuned
