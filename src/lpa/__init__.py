"""Pre-train language models with low-rank attention (LPA), beside their dense baselines.

Importing this package is cheap: torch and transformers load on first use of a name below. The Auto
classes of transformers know `model_type: lpa` from then on, whichever of the two is imported first.
"""

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

__version__ = "0.1.0"

# The room that defines each public name.
_ROOMS = {
    "LPAConfig": "lpa.model",
    "LPAForCausalLM": "lpa.model",
    "LPAModel": "lpa.model",
    "LPAWarning": "lpa.errors",
    "LowRankLinear": "lpa.lowrank",
    "UserError": "lpa.errors",
    "break_even_rank": "lpa.lowrank",
}

__all__ = [
    "LPAConfig",
    "LPAForCausalLM",
    "LPAModel",
    "LPAWarning",
    "LowRankLinear",
    "UserError",
    "__version__",
    "break_even_rank",
]

if TYPE_CHECKING:
    from lpa.errors import LPAWarning, UserError
    from lpa.lowrank import LowRankLinear, break_even_rank
    from lpa.model import LPAConfig, LPAForCausalLM, LPAModel


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'lpa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


# The Auto classes live in these modules of transformers. They learn of this package as soon as they
# exist, so `import lpa` need not import transformers (seconds) to register with it.
@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _register_config(_: Any) -> None:
    importlib.import_module("lpa.model.auto").register_config()


@wrapt.when_imported("transformers.models.auto.modeling_auto")
@wrapt.when_imported("transformers.modeling_layers")
def _load_models(_: Any) -> None:
    importlib.import_module("lpa.model.auto").load_models()
