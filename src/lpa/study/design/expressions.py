"""Values of a grid that refer to the sizes of its scale, such as `3d/8`."""

import re
from dataclasses import dataclass
from typing import Any

from lpa.model.presets import preset_config
from lpa.study.design.run_configs import run_config, total_tokens

# What a variant says beside fields of the configuration.
MATCH, BASELINE = "match", "baseline"

# The sections that decide how many tokens a run takes.
_LENGTH_SECTIONS = ("data.", "train.")


@dataclass
class Sizes:
    """What `d/4` and the like refer to: the scale's widths, heads, tokens, steps and learning rate."""

    d: int
    f: int
    h: int
    t: int
    s: int
    lr: float

    @classmethod
    def from_settings(cls, base: dict[str, Any]) -> "Sizes":
        config = preset_config(base["model.preset"])
        length = run_config({k: v for k, v in base.items() if k.startswith(_LENGTH_SECTIONS)})
        return cls(
            d=base.get("model.hidden_size", config.hidden_size),
            f=base.get("model.intermediate_size", config.intermediate_size),
            h=base.get("model.num_attention_heads", config.num_attention_heads),
            t=total_tokens(length),
            s=length.train.steps,
            lr=base["optim.lr"],
        )


def resolve_expressions(value: Any, sizes: Sizes) -> Any:
    """With every expression such as `3d/8` replaced by its number: whole, except of a learning rate."""
    if isinstance(value, dict):
        return {
            key: item if key in (BASELINE, MATCH) else resolve_expressions(item, sizes)
            for key, item in value.items()
        }
    if isinstance(value, str) and (found := re.fullmatch(r"(\d*)([dfhts]|lr)(?:/(\d+))?", value)):
        factor, name, divisor = found.groups()
        product = int(factor or 1) * getattr(sizes, name)
        if name == "lr":
            return product / int(divisor or 1)
        # A fraction of the steps is rounded up, so that no further period begins before the last step.
        quotient = -(-product // int(divisor or 1)) if name == "s" else product // int(divisor or 1)
        return max(1, quotient)
    return value


def variant_name(name: str, sizes: Sizes) -> str:
    """A variant's name with what is in braces replaced by its number."""
    return re.sub(r"\{(.+?)\}", lambda found: f"{resolve_expressions(found[1], sizes):g}", name)
