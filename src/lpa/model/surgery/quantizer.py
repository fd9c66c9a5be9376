"""Models of other classes with low-rank pairs inside, saved and loaded by transformers' own means.

Their config.json has a `quantization_config` of `quant_method: low_rank` with the rank of each pair. It is
the one point where transformers lets a package replace modules of any class before weights are loaded;
nothing is quantized, and the models train, cast and save like any other.

Where this package is missing, transformers skips an unknown quantization and would draw new weights for
the projections. Two things that it does not skip make it refuse: a fusion of modules that it does not
know, whose name, which the error quotes, says what to do; and, for releases that fuse nothing, a tensor
of another shape under the name of each dense weight.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lpa.model.auto import QUANT_METHOD
from lpa.model.surgery.low_rank_modules import insert_dense_modules, insert_low_rank_modules

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_FUSION = "low-rank pairs"
_REQUEST = (
    f"{_FUSION}, which need `pip install lpa` and `import lpa`; or trust_remote_code=True, where the "
    "directory holds modeling_low_rank.py; or a dense copy of the model: "
    "`lpa convert merge MODEL --out DENSE`"
)


class LowRankConfig(QuantizationConfigMixin):
    """Which modules are low-rank pairs.

    Args:
        ranks: full name of the module in the model -> rank.
    """

    def __init__(
        self, ranks: dict[str, int] | None = None, quant_method: str = QUANT_METHOD, **_: Any
    ) -> None:
        self.quant_method = quant_method
        self.ranks = ranks  # what a file says; `insert_low_rank_modules` checks it


class LowRankQuantizer(HfQuantizer):
    """Puts empty pairs where the checkpoint has pairs, and dense modules back on request."""

    # What `save_pretrained` was given to write; None: the weights of the model.
    given_state_dict: Mapping[str, Any] | None = None

    def update_attn_implementation(self, config: "PreTrainedConfig") -> "PreTrainedConfig":
        """Remove the request from the configuration: this quantizer holds what it asks for."""
        _remove_request(config)
        return config

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **_: Any) -> None:
        names = insert_low_rank_modules(model, self.quantization_config.ranks)
        placeholders = {rf"(^|\.){re.escape(name)}\.weight$" for name in names}
        ignored = set(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = ignored | placeholders
        # Quantized models refuse `half` and `float`.
        model.is_quantized = False
        del model.quantization_method

    def _process_model_after_weight_loading(
        self, model: "PreTrainedModel", **_: Any
    ) -> "PreTrainedModel":
        _add_request(model.config)
        return model

    def get_state_dict_and_metadata(
        self, model: "PreTrainedModel"
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """What `save_pretrained` writes: the weights, and a placeholder for each dense one."""
        given = self.given_state_dict
        weights = dict(model.state_dict() if given is None else given)
        ranks = self.quantization_config.ranks
        return weights | {f"{name}.weight": torch.zeros(1) for name in ranks}, {}

    def _dequantize(self, model: "PreTrainedModel", dtype: Any = None) -> "PreTrainedModel":
        insert_dense_modules(model)
        _remove_request(model.config)
        # What `remote_loading` does is no longer needed.
        vars(model.config).pop("auto_map", None)
        vars(model).pop("save_pretrained", None)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


@contextmanager
def saving_state_dict(
    model: "PreTrainedModel", state_dict: Mapping[str, Any] | None
) -> Iterator[None]:
    """Let `save_pretrained` write the weights that it is given, if any.

    transformers asks the quantizer of a model for its weights instead.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    # Not by its class, of which each copy of this file has one (see `remote_loading`).
    if not hasattr(quantizer, "given_state_dict"):
        yield
        return
    before = quantizer.given_state_dict
    quantizer.given_state_dict = state_dict
    try:
        yield
    finally:
        quantizer.given_state_dict = before


def attach_quantization_config(model: "PreTrainedModel", ranks: dict[str, int]) -> None:
    """Let `save_pretrained` record the pairs of a live model, as if it had been loaded with them."""
    config = LowRankConfig(dict(ranks))
    model.config.quantization_config = config
    model.hf_quantizer = LowRankQuantizer(config)
    _add_request(model.config)


def _add_request(config: "PreTrainedConfig") -> None:
    config.fusion_config = (getattr(config, "fusion_config", None) or {}) | {_REQUEST: True}


def _remove_request(config: "PreTrainedConfig") -> None:
    fusions = getattr(config, "fusion_config", None) or {}
    # Whatever a release adds to the name.
    fusions = {name: of for name, of in fusions.items() if not name.startswith(_FUSION)}
    if fusions:
        config.fusion_config = fusions
    elif hasattr(config, "fusion_config"):
        del config.fusion_config
