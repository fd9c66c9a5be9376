"""Let peft put LoRA on low-rank pairs by the names that projections have everywhere.

`LoraConfig(target_modules=["q_proj"])` names a module that is a pair here. Its LoRA is one on each factor, so
that a merged adapter leaves a pair of the same rank.
"""

from typing import Any

import wrapt

from lpa.lowrank import LowRankLinear

# Those of a Llama in peft.
DEFAULT_TARGETS = ["q_proj", "v_proj"]


def register_default_targets() -> None:
    """Where LoRA is added in a model of this package if `target_modules` says nothing."""
    from peft.utils import constants

    constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault("lpa", DEFAULT_TARGETS)


def register_low_rank_adapters() -> None:
    """Let each `LoraConfig` know what LoRA on a pair is."""
    from peft.tuners.lora import config

    wrapt.wrap_function_wrapper(config.LoraConfig, "__post_init__", _add_low_rank_adapter)


def _add_low_rank_adapter(
    wrapped: Any, config: Any, arguments: tuple[Any, ...], options: Any
) -> None:
    wrapped(*arguments, **options)
    config._register_custom_module({LowRankLinear: adapt_low_rank_linear})


def adapt_low_rank_linear(
    pair: LowRankLinear, adapter_name: str, config: Any, **options: Any
) -> LowRankLinear:
    """Put an adapter on both factors of a pair, in place.

    Args:
        config: the `LoraConfig`.
        options: what peft gives to a LoRA layer, with the rank as `r`.

    Returns:
        The pair.
    """
    from peft.tuners.lora import LoraLayer, LoraModel

    for name in ("down", "up"):
        factor = getattr(pair, name)
        target = f"{options['target_name']}.{name}"
        if isinstance(factor, LoraLayer):  # of another adapter
            factor.update_layer(
                adapter_name,
                options["r"],
                lora_alpha=options["lora_alpha"],
                target_name=target,
                config=config,
            )
        else:
            layer = LoraModel._create_new_module(
                config, adapter_name, factor, **{**options, "target_name": target}
            )
            setattr(pair, name, layer)
    return pair
