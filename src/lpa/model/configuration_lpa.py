"""LPAConfig: a decoder whose projections may be low-rank."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from lpa.errors import UserError, expected_one_of
from lpa.lowrank import INITIALIZATIONS, check_rank

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")

# Decoder -> the projections of its FFN.
FFN_PROJECTIONS = {
    "llama": ("gate_proj", "up_proj", "down_proj"),
    "paper": ("fc1", "fc2"),
}

# Which projections are low-rank (Lv et al. 2024, section 3): none, those of one kind, or all.
PLACEMENTS = ("none", "attention", "ffn", "all")

# Sizes that no machine could hold; products of two of them still have 64 bits.
_MAX = {
    "vocab_size": 2**31 - 1,
    "hidden_size": 2**24,
    "intermediate_size": 2**24,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "max_position_embeddings": 2**31 - 1,
}

# The square of a start weight's deviation must still have a float32.
_MAX_DEVIATION = 1e6

# What a low-rank projection is; None is the plain pair of Lv et al. 2024.
LOW_RANK_METHODS = (None, "cola", "sltrain")
_SPARSE_DENSITY = 0.03  # Han et al. 2024, section 5

# What writes to the residual stream, and so gathers what tensor parallelism has split.
RESIDUAL_PROJECTIONS = ("o_proj", "down_proj", "fc2")

_DEFAULT_ACTIVATION = {"llama": "silu", "paper": "relu"}


@strict
class LPAConfig(PreTrainedConfig):
    """Configuration of a decoder with low-rank projections.

    Fields that LlamaConfig has keep their names and meanings; `layer_norm_eps` is for `decoder_type` paper.

    Fields of this project:
        decoder_type: `llama` (pre-norm RMSNorm, RoPE, SwiGLU, no biases; the paper's setting 2) or `paper`
            (LayerNorm on each branch's output, learned positions, ReLU, biases; its setting 1).
        placement: which projections are low-rank: `none` (the dense Transformer), `attention` (LPA),
            `ffn` or `all`.
        rank: their rank; by default a quarter of `hidden_size`.
        ffn_rank: the rank of those in the FFN where it differs from `rank`.
        ranks: projection name -> rank; overrides placement and rank. None keeps a projection dense. A list
            gives each layer its own rank or None.
        dense_layers: layers, counted from 0, that keep all projections dense.
        initialization: how low-rank pairs start (see `init_factors`): `linear`, each factor as an
            `nn.Linear`, as published; `scaled`, normal entries, so that those of the product have the
            standard deviation `initializer_range`; `spectral`, the truncated SVD of a random dense
            projection; `orthogonal`; `cola`, as CoLA's authors start; or `lora`, at zero, as SLTrain does.
        low_rank_method: what a low-rank projection is: None, the plain pair; `cola`, with a SiLU between
            the factors (see `CoLALinear`); or `sltrain`, plus a sparse matrix (see `SLTrainLinear`).
        sparse_density: the fraction of entries of that sparse matrix; by default 0.03 with `sltrain`.
        residual_scaling: whether what writes to the residual stream (o_proj, down_proj, fc2), dense or
            low-rank, starts smaller by √(2 · num_hidden_layers) (Radford et al. 2019, section 2.3).
        lm_head_bias: whether the LM head has a bias, as in the published code.
        resid_pdrop: dropout on the output of each branch before it is added.
        intra_document_mask: whether documents in one sample were kept from attending to each other in
            training, as they are then where the model is scored; `position_ids` say where they begin.

    Raises:
        UserError: a value that the model cannot have, named.
    """

    model_type = "lpa"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012, the Trainer adds a list to it

    # Read by transformers for `tp_plan="auto"` and pipeline parallelism; `__post_init__` makes the first.
    base_model_tp_plan = None
    base_model_pp_plan = {  # noqa: RUF012
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str | None = None
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    layer_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters | dict | None = None
    attention_dropout: int | float = 0.0
    resid_pdrop: int | float = 0.0
    decoder_type: str = "llama"
    placement: str = "attention"
    rank: int | None = None
    ffn_rank: int | None = None
    ranks: dict | None = None
    dense_layers: list[int] | None = None
    initialization: str = "scaled"
    residual_scaling: bool = False
    low_rank_method: str | None = None
    sparse_density: int | float | None = None
    lm_head_bias: bool = False
    intra_document_mask: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_sizes()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise UserError(
                    f"hidden_size: got {self.hidden_size}, which is not divisible by num_attention_heads "
                    f"({self.num_attention_heads}); expected a multiple of it, or a head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.rank is None:
            self.rank = max(1, self.hidden_size // 4)
        if self.decoder_type not in FFN_PROJECTIONS:
            raise UserError(
                f"decoder_type: got {self.decoder_type!r}; "
                f"{expected_one_of(self.decoder_type, FFN_PROJECTIONS)}"
            )
        if self.hidden_act is None:
            self.hidden_act = _DEFAULT_ACTIVATION[self.decoder_type]
        if self.hidden_act not in ACT2FN:
            raise UserError(
                f"hidden_act: got {self.hidden_act!r}; {expected_one_of(self.hidden_act, ACT2FN)}"
            )
        if self.low_rank_method == "sltrain" and self.sparse_density is None:
            self.sparse_density = _SPARSE_DENSITY
        super().__post_init__(**kwargs)
        self._check_shape()
        self._check_initialization()
        self._check_low_rank_method()
        self._check_ranks()
        self.base_model_tp_plan = self._tensor_parallel_plan()

    def validate_rope(self) -> None:
        """Validate RoPE as transformers does, for the decoder that has it."""
        if self.decoder_type == "llama":
            super().validate_rope()

    @property
    def projections(self) -> tuple[str, ...]:
        """The projections of a layer, in the order in which they are applied."""
        return (*ATTENTION_PROJECTIONS, *FFN_PROJECTIONS[self.decoder_type])

    def projection_shape(self, projection: str) -> tuple[int, int]:
        """(in_features, out_features) of a projection."""
        assert self.head_dim is not None
        assert self.num_key_value_heads is not None
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        ffn_shape = (self.hidden_size, self.intermediate_size)
        return {
            "q_proj": (self.hidden_size, queries),
            "k_proj": (self.hidden_size, keys),
            "v_proj": (self.hidden_size, keys),
            "o_proj": (queries, self.hidden_size),
            "gate_proj": ffn_shape,
            "up_proj": ffn_shape,
            "down_proj": ffn_shape[::-1],
            "fc1": ffn_shape,
            "fc2": ffn_shape[::-1],
        }[projection]

    def projection_rank(self, projection: str, layer_idx: int) -> int | None:
        """The rank of a projection in a layer, or None where it is dense."""
        if layer_idx in (self.dense_layers or ()):
            return None
        return self.rank_and_field(projection, layer_idx)[0]

    def rank_and_field(self, projection: str, layer_idx: int) -> tuple[int | None, str]:
        """The rank of a projection in a layer that is not kept dense, and what field says so."""
        if self.ranks is not None and projection in self.ranks:
            rank = self.ranks[projection]
            if isinstance(rank, list):
                return rank[layer_idx], f"ranks.{projection}[{layer_idx}]"
            return rank, f"ranks.{projection}"
        kind = "attention" if projection in ATTENTION_PROJECTIONS else "ffn"
        if self.placement not in (kind, "all"):
            return None, "placement"
        if kind == "ffn" and self.ffn_rank is not None:
            return self.ffn_rank, "ffn_rank"
        return self.rank, "rank"

    def _tensor_parallel_plan(self) -> dict[str, str]:
        """How tensor parallelism splits the layers, in the words of transformers.

        Of a pair, the factor at the wide side is split; the other, and with it the latent, is whole on every
        process. So heads and hidden features are split exactly as between dense maps, and what is summed
        over processes after o_proj or down_proj is the latent, `rank` wide.
        """
        if self.low_rank_method == "sltrain":  # forms whole matrices
            return {}
        plan = {}
        for projection in self.projections:
            block = "self_attn" if projection in ATTENTION_PROJECTIONS else "mlp"
            name = f"layers.*.{block}.{projection}"
            gathers = projection in RESIDUAL_PROJECTIONS
            ranks = {self.projection_rank(projection, i) for i in range(self.num_hidden_layers)}
            if None in ranks:
                plan[name] = "rowwise" if gathers else "colwise"
            if ranks - {None}:
                plan[f"{name}.{'down' if gathers else 'up'}"] = "rowwise" if gathers else "colwise"
        return plan

    def _check_sizes(self) -> None:
        """Check the sizes that are given, before others are computed from them."""
        for field, most in _MAX.items():
            size = getattr(self, field)
            if size is None and field in ("num_key_value_heads", "head_dim"):
                continue
            if isinstance(size, bool) or not isinstance(size, int):
                raise UserError(f"{field}: got {size!r}; expected a whole number")
            if size < 1:
                raise UserError(f"{field}: got {size}; expected at least 1")
            if size > most:
                raise UserError(f"{field}: got {size}; expected at most {most}")

    def _check_shape(self) -> None:
        assert self.num_key_value_heads is not None
        assert self.head_dim is not None
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_key_value_heads: got {self.num_key_value_heads}; "
                f"expected a divisor of num_attention_heads ({self.num_attention_heads})"
            )
        if self.decoder_type == "llama" and self.head_dim % 2:
            raise UserError(
                f"head_dim: got {self.head_dim}; expected an even number, as RoPE turns pairs"
            )

        for field in ("attention_dropout", "resid_pdrop"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(
                    f"{field}: got {getattr(self, field)}; expected at least 0 and below 1"
                )

    def _check_initialization(self) -> None:
        if not 0 < self.initializer_range <= _MAX_DEVIATION:
            raise UserError(
                f"initializer_range: got {self.initializer_range}; expected a positive number, at most "
                f"{_MAX_DEVIATION:g}"
            )
        if self.initialization not in INITIALIZATIONS:
            raise UserError(
                f"initialization: got {self.initialization!r}; "
                f"{expected_one_of(self.initialization, INITIALIZATIONS)}"
            )

    def _check_low_rank_method(self) -> None:
        if self.low_rank_method not in LOW_RANK_METHODS:
            raise UserError(
                f"low_rank_method: got {self.low_rank_method!r}; expected null, "
                f"{' or '.join(filter(None, LOW_RANK_METHODS))}"
            )
        if self.low_rank_method == "sltrain" and self.decoder_type != "llama":
            raise UserError(
                f"low_rank_method: got sltrain with decoder_type {self.decoder_type}; expected llama, "
                "whose projections have no biases"
            )
        density = self.sparse_density
        if density is not None and self.low_rank_method != "sltrain":
            raise UserError(
                f"sparse_density: got {density}; expected null without low_rank_method sltrain"
            )
        if density is not None and not 0 < density <= 1:
            raise UserError(f"sparse_density: got {density}; expected above 0 and at most 1")

    def _check_ranks(self) -> None:
        if self.placement not in PLACEMENTS:
            raise UserError(
                f"placement: got {self.placement!r}; {expected_one_of(self.placement, PLACEMENTS)}"
            )
        for name, rank in (self.ranks or {}).items():
            if name not in self.projections:
                raise UserError(f"ranks: got {name!r}; {expected_one_of(name, self.projections)}")
            if isinstance(rank, list) and len(rank) != self.num_hidden_layers:
                raise UserError(
                    f"ranks.{name}: got {len(rank)} ranks; expected one for each of "
                    f"{self.num_hidden_layers} layers (num_hidden_layers)"
                )
        for layer in self.dense_layers or ():
            if not 0 <= layer < self.num_hidden_layers:
                raise UserError(
                    f"dense_layers: got {layer}; expected from 0 to {self.num_hidden_layers - 1}"
                )
        # One check per field and shape: four projections of the same shape deserve one warning.
        checked = set()
        for projection in self.projections:
            own = isinstance((self.ranks or {}).get(projection), list)
            for layer in range(self.num_hidden_layers if own else 1):
                rank, field = self.rank_and_field(projection, layer)
                case = (field, *sorted(self.projection_shape(projection)))
                if rank is not None and case not in checked:
                    check_rank(rank, *self.projection_shape(projection), field=field)
                    checked.add(case)
        if self.low_rank_method is not None and not any(
            self.projection_rank(projection, layer)
            for projection in self.projections
            for layer in range(self.num_hidden_layers)
        ):
            raise UserError(
                f"low_rank_method: got {self.low_rank_method!r} where all projections are dense; expected "
                "null, or a placement with low-rank projections"
            )
