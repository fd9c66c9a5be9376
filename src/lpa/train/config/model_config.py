"""The section `model` of a recipe: the architecture."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from lpa.errors import UserError
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.presets import preset_config
from lpa.train.config.field_ranges import check_types, require


@dataclass
class ModelConfig:
    """The architecture: a preset, its placement and ranks, and any size that differs from it.

    Attributes:
        preset: a named architecture.
        placement: which projections are low-rank: none, attention, ffn or all.
        rank: the rank of the low-rank projections (by default the preset's).
        ffn_rank: the rank of the low-rank projections in the FFN; by default the preset's, or rank where
            that is not the preset's or the preset has none.
        ranks: projection name to its rank, or to a list of one rank per layer; overrides placement and
            rank; null keeps a projection dense.
        hidden_size: width of the residual stream; by default the preset's, as for the sizes below.
        intermediate_size: width of the FFN.
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads (fewer for grouped queries).
        head_dim: width of a head; by default hidden_size / num_attention_heads.
        vocab_size: by default that of the data.
        tie_word_embeddings: whether the LM head shares the embedding's weights.
        lm_head_bias: whether the LM head has a bias.
        attention_dropout: probability of dropping an attention weight.
        resid_pdrop: probability of dropping a branch's output before it is added.
        dense_layers: layers, counted from 0, that keep all projections dense.
        initializer_range: standard deviation of the weights, of the product where they are low-rank.
        initialization: how low-rank pairs start: linear (each factor as an nn.Linear), scaled,
            spectral, orthogonal, cola (as CoLA's authors start) or lora (at zero, as SLTrain does); by
            default scaled.
        residual_scaling: whether the initial weights of the projections that write to the residual
            stream are divided by sqrt(2 * num_hidden_layers); by default not.
        low_rank_method: what a low-rank projection is: by default the plain pair; cola, with a SiLU
            between the factors; or sltrain, plus a sparse matrix.
        sparse_density: the fraction of nonzero entries in the sparse matrix of sltrain; by default 0.03.
        attn_implementation: what computes attention, by its name in transformers; by default sdpa. It changes
            rounding and speed, and is not part of the model that is saved.
        from_: `model.from` in recipes: the directory of an LPAForCausalLM, such as `lpa convert factorize`
            makes, whose weights and architecture the run starts from; only attn_implementation may be set
            beside it.
    """

    preset: str = "nano"
    placement: str = "attention"
    rank: int | None = None
    ffn_rank: int | None = None
    ranks: dict[str, int | list[int | None] | None] | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    tie_word_embeddings: bool | None = None
    lm_head_bias: bool | None = None
    attention_dropout: float | None = None
    resid_pdrop: float | None = None
    dense_layers: list[int] | None = None
    initializer_range: float | None = None
    initialization: str | None = None
    residual_scaling: bool | None = None
    low_rank_method: str | None = None
    sparse_density: float | None = None
    attn_implementation: (
        Literal["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] | None
    ) = None
    from_: Path | None = None

    def __post_init__(self) -> None:
        check_types("model", self)
        self.from_ = None if self.from_ is None else Path(self.from_)
        for known in fields(self):
            value = getattr(self, known.name)
            require(
                self.from_ is None
                or known.name in ("from_", "attn_implementation")
                or value == known.default,
                f"model.{known.name}",
                value,
                f"nothing beside model.from, as {self.from_} decides the architecture",
            )

    def build(self, *, vocab_size: int, seq_len: int) -> LPAConfig:
        """The model configuration for a vocabulary and context.

        Raises:
            UserError: a value that the model cannot have, or a vocabulary smaller than the data's.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        preset = given.pop("preset")
        given.pop("attn_implementation", None)  # how it is computed, not what it is
        if given.setdefault("vocab_size", vocab_size) < vocab_size:
            raise UserError(
                f"model.vocab_size: got {self.vocab_size}; the data has tokens up to "
                f"{vocab_size - 1}, so expected at least {vocab_size}"
            )
        return preset_config(preset, **given, max_position_embeddings=seq_len)
