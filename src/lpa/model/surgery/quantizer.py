"""Models of other classes with low-rank pairs inside, saved and loaded by transformers' own means.

Their config.json has a `quantization_config` of `quant_method: low_rank` with the rank of each pair. It is
the one point where transformers lets a package replace modules of any class before weights are loaded;
nothing is quantized, and the models train and save like any other.
"""

from typing import TYPE_CHECKING, Any

from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lpa.model.auto import QUANT_METHOD
from lpa.model.surgery.low_rank_modules import insert_low_rank_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    """Puts empty pairs where the checkpoint has pairs."""

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **_: Any) -> None:
        insert_low_rank_modules(model, self.quantization_config.ranks)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def attach_quantization_config(model: "PreTrainedModel", ranks: dict[str, int]) -> None:
    """Let `save_pretrained` record the pairs of a live model, as if it had been loaded with them."""
    config = LowRankConfig(dict(ranks))
    model.config.quantization_config = config
    model.hf_quantizer = LowRankQuantizer(config)
    model.is_quantized = True
    model.quantization_method = QUANT_METHOD
