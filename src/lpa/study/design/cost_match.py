"""Models that cost what others do, in parameters, FLOPs or cache."""

import math
from collections.abc import Collection
from typing import Any

from lpa.errors import UserError, expected_one_of
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.plan import COST_KINDS, closest_value, model_cost, replace_fields
from lpa.study.design.expressions import Sizes, variant_name

# Which fields may be found, as docs/how-to/run-a-study.md lists them.
_FIELDS = (
    "rank",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def read_match(declared: Any, place: str, earlier: Collection[str], sizes: Sizes) -> dict[str, str]:
    """A match as `match_cost` takes it, of one that a grid declares.

    Args:
        place: where it is declared, as errors put it first.
        earlier: the names of the variants before it.
        sizes: what braces in the name of a variant refer to.

    Raises:
        UserError: other keys than `field`, `cost` and `to`, or a value that is not accepted.
    """
    accepted = {"field": _FIELDS, "cost": COST_KINDS, "to": earlier}
    if not isinstance(declared, dict) or declared.keys() != accepted.keys():
        raise UserError(f"{place}: got {declared!r}; expected {', '.join(accepted)}")
    wanted = declared | {"to": variant_name(str(declared["to"]), sizes)}
    for key, values in accepted.items():
        if wanted[key] not in values:
            raise UserError(
                f"{place}.{key}: got {wanted[key]!r}; {expected_one_of(wanted[key], values)}"
            )
    return wanted


def match_cost(
    model: LPAConfig, target: LPAConfig, wanted: dict[str, str], seq_len: int
) -> tuple[dict[str, Any], float]:
    """The value of a field at which a model costs what another does, and how close that comes.

    Args:
        wanted: `field`, which is changed; and `cost`, see `model_cost`.

    Returns:
        The changed fields as those of a run's configuration, and the ratio of the costs.
    """

    def cost(config: LPAConfig) -> int:
        return model_cost(config, wanted["cost"], seq_len)

    def changes(value: int) -> dict[str, Any]:
        if wanted["field"] == "num_attention_heads":  # more heads of the same width
            return {
                "num_attention_heads": value,
                "num_key_value_heads": value,
                "head_dim": model.head_dim,
            }
        return {wanted["field"]: value}

    def cost_at(value: int) -> int:
        return cost(replace_fields(model, **changes(value)))

    if wanted["field"] == "num_key_value_heads":
        heads = model.num_attention_heads
        divisors = [value for value in range(1, heads + 1) if heads % value == 0]
        value = min(divisors, key=lambda each: abs(math.log(cost_at(each) / cost(target))))
    else:
        high = min(min(model.projection_shape(name)) for name in model.projections)
        if wanted["field"] != "rank":
            high = 16 * getattr(model, wanted["field"])
        value = closest_value(cost_at, cost(target), 1, high)
    found = {f"model.{name}": item for name, item in changes(value).items()}
    return found, cost_at(value) / cost(target)
