"""LPAConfig: a LLaMA-like decoder whose projections may be low-rank."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from lpa.errors import UserError
from lpa.lowrank import check_rank

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
PROJECTIONS = (*ATTENTION_PROJECTIONS, *FFN_PROJECTIONS)

# Placement -> the projections that it makes low-rank (Lv et al. 2024, section 3).
PLACEMENTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "attention": ATTENTION_PROJECTIONS,
    "ffn": FFN_PROJECTIONS,
    "all": PROJECTIONS,
}


@strict
class LPAConfig(PreTrainedConfig):
    """Configuration of a decoder with low-rank projections; HF's names where HF has one.

    Fields of this project:
        placement: which projections are low-rank: `none` (the dense Transformer), `attention` (LPA),
            `ffn` or `all`.
        rank: their rank; by default a quarter of `hidden_size`.
        ffn_rank: the rank of those in the FFN where it differs from `rank`.
        ranks: projection name -> rank, over what placement and rank say; None keeps one dense.
        lm_head_bias: whether the LM head has a bias, as in the published code.

    Raises:
        UserError: an unknown placement or projection, or a rank that its projection cannot have.
    """

    model_type = "lpa"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters | dict | None = None
    attention_dropout: int | float = 0.0
    placement: str = "attention"
    rank: int | None = None
    ffn_rank: int | None = None
    ranks: dict | None = None
    lm_head_bias: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.rank is None:
            self.rank = max(1, self.hidden_size // 4)
        super().__post_init__(**kwargs)
        self._check_shape()
        self._check_ranks()

    def projection_shape(self, projection: str) -> tuple[int, int]:
        """(in_features, out_features) of a projection."""
        assert self.head_dim is not None
        assert self.num_key_value_heads is not None
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (self.hidden_size, queries),
            "k_proj": (self.hidden_size, keys),
            "v_proj": (self.hidden_size, keys),
            "o_proj": (queries, self.hidden_size),
            "gate_proj": (self.hidden_size, self.intermediate_size),
            "up_proj": (self.hidden_size, self.intermediate_size),
            "down_proj": (self.intermediate_size, self.hidden_size),
        }[projection]

    def projection_rank(self, projection: str) -> int | None:
        """The rank of a projection, or None where it is dense."""
        if self.ranks is not None and projection in self.ranks:
            return self.ranks[projection]
        if projection not in PLACEMENTS[self.placement]:
            return None
        if projection in FFN_PROJECTIONS and self.ffn_rank is not None:
            return self.ffn_rank
        return self.rank

    def _check_shape(self) -> None:
        for field in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            if getattr(self, field) < 1:
                raise UserError(f"{field}: got {getattr(self, field)}; expected at least 1")
        assert self.num_key_value_heads is not None
        assert self.head_dim is not None
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_key_value_heads: got {self.num_key_value_heads}; "
                f"expected a divisor of num_attention_heads ({self.num_attention_heads})"
            )
        if self.head_dim % 2:
            raise UserError(
                f"head_dim: got {self.head_dim}; expected an even number, as RoPE turns pairs"
            )

    def _check_ranks(self) -> None:
        if self.placement not in PLACEMENTS:
            raise UserError(
                f"placement: got {self.placement!r}; expected one of {', '.join(PLACEMENTS)}"
            )
        for name in self.ranks or {}:
            if name not in PROJECTIONS:
                raise UserError(f"ranks: got {name!r}; expected one of {', '.join(PROJECTIONS)}")
        # One check per field and shape: four projections of the same shape deserve one warning.
        checked = set()
        for projection in PROJECTIONS:
            rank = self.projection_rank(projection)
            if rank is None:
                continue
            if self.ranks is not None and projection in self.ranks:
                field = f"ranks.{projection}"
            elif projection in FFN_PROJECTIONS and self.ffn_rank is not None:
                field = "ffn_rank"
            else:
                field = "rank"
            case = (field, *sorted(self.projection_shape(projection)))
            if case not in checked:
                check_rank(rank, *self.projection_shape(projection), field=field)
                checked.add(case)
