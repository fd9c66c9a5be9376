"""Weights of the published LPA code (Lv et al. 2024) under this project's names."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpa.errors import UserError
from lpa.model.configuration_lpa import ATTENTION_PROJECTIONS, FFN_PROJECTIONS, LPAConfig
from lpa.model.hub.model_card import CardContent
from lpa.model.hub.model_directory import save_model
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.storage.outputs import MODEL, atomic_directory, check_output_directory

_SEQ_LEN = 256  # of the published training runs

_LAYER = r"transformer_blocks\.(\d+)\."
_COMMON = [
    (r"token_embedding\.weight", "model.embed_tokens.weight"),
    (r"fc\.(weight|bias)", r"lm_head.\1"),
    (_LAYER + r"norm1\.(weight|bias)", r"model.layers.\1.input_layernorm.\2"),
    (_LAYER + r"norm2\.(weight|bias)", r"model.layers.\1.post_attention_layernorm.\2"),
]
# Setting -> rules from a published name, without `lpa.`, to ours. The first that matches counts.
_RULES = {
    1: [
        *_COMMON,
        (r"positional_embedding\.weight", "model.embed_positions.weight"),
        *(
            (
                _LAYER + rf"attention\.{theirs}_proj(\.\d)?\.(\w+)",
                rf"model.layers.\1.self_attn.{ours}\2.\3",
            )
            for theirs, ours in zip(
                ("query", "key", "value", "out"), ATTENTION_PROJECTIONS, strict=True
            )
        ),
        # The FFN is one sequence: two maps with a ReLU between them, or two pairs.
        (_LAYER + r"fc\.(0|1|2|3|4)\.(\w+)", r"model.layers.\1.mlp.[\2].\3"),
    ],
    2: [
        *_COMMON,
        (r"norm\.weight", "model.norm.weight"),
        (_LAYER + r"attention\.(\w_proj)(\.\d)?\.(\w+)", r"model.layers.\1.self_attn.\2\3.\4"),
        (_LAYER + r"ffn\.(\w+_proj)(\.\d)?\.(\w+)", r"model.layers.\1.mlp.\2\3.\4"),
    ],
}
_DENSE_FFN = {"[0]": "fc1", "[2]": "fc2"}
_LOW_RANK_FFN = {"[0]": "fc1.down", "[1]": "fc1.up", "[3]": "fc2.down", "[4]": "fc2.up"}


def rename_tensors(tensors: dict[str, Tensor], setting: int) -> dict[str, Tensor]:
    """The tensors of a published checkpoint under the names of `LPAForCausalLM`.

    Args:
        tensors: under their names in the published code, all of them perhaps below `weights.`.
        setting: 1 (post-sublayer norm) or 2 (LLaMA-like).

    Raises:
        UserError: no such setting, or a name that its model does not have.
    """
    if setting not in _RULES:
        raise UserError(f"--setting: got {setting}; expected 1 or 2")
    low_rank_ffn = any(re.search(r"transformer_blocks\.\d+\.fc\.4\.", name) for name in tensors)
    renamed = {}
    for name, tensor in tensors.items():
        if name.endswith("rotary_emb.inv_freq"):
            continue  # a constant, not a weight
        ours = _our_name(name, setting, low_rank_ffn)
        if ours in renamed:
            raise UserError(f"checkpoint: has {ours} twice, {name} among them")
        renamed[ours] = tensor
    return renamed


def _our_name(name: str, setting: int, low_rank_ffn: bool) -> str:
    short = name.removeprefix("weights.").removeprefix("lpa.")
    for pattern, replacement in _RULES[setting]:
        if match := re.fullmatch(pattern, short):
            ours = match.expand(replacement)
            for theirs, part in (_LOW_RANK_FFN if low_rank_ffn else _DENSE_FFN).items():
                ours = ours.replace(theirs, part)
            return ours.replace("_proj.0.", "_proj.down.").replace("_proj.1.", "_proj.up.")
    raise UserError(
        f"checkpoint: unexpected tensor {name}; setting {setting} has none of this name"
    )


def published_config(
    tensors: dict[str, Tensor],
    setting: int,
    *,
    num_attention_heads: int,
    seq_len: int | None = None,
) -> LPAConfig:
    """The configuration that renamed tensors were made with, all sizes read from them.

    Args:
        tensors: as `rename_tensors` gives them.
        setting: 1 or 2.
        num_attention_heads: which the tensors do not tell.
        seq_len: positions of setting 2, which its tensors do not tell either; by default 256.

    Raises:
        UserError: a tensor that tells a size is missing, or the heads or the positions do not fit them.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(
                f"checkpoint: has no {name}; expected a published model of setting {setting}"
            )
        if tensors[name].dim() != 2:
            raise UserError(f"checkpoint: {name} has {tensors[name].dim()} dimensions; expected 2")
        return tuple(tensors[name].shape)

    decoder_type = {1: "paper", 2: "llama"}[setting]
    vocab_size, hidden_size = shape("model.embed_tokens.weight")
    numbers = {
        int(found[1]) for name in tensors if (found := re.match(r"model\.layers\.(\d+)\.", name))
    }
    layers = len(numbers)
    if numbers != set(range(layers)):
        raise UserError(f"checkpoint: has {layers} layers, of which the last is {max(numbers)}")

    def rank(group: str, projection: str) -> int | None:
        name = f"model.layers.0.{group}.{projection}.down.weight"
        return shape(name)[0] if name in tensors else None

    def out_features(group: str, projection: str) -> int:
        part = ".up" if rank(group, projection) else ""
        return shape(f"model.layers.0.{group}.{projection}{part}.weight")[0]

    queries = out_features("self_attn", "q_proj")
    if num_attention_heads < 1 or queries % num_attention_heads:
        raise UserError(
            f"--num-attention-heads: got {num_attention_heads}; expected a divisor of {queries}, "
            "the queries of the checkpoint"
        )
    ffn = FFN_PROJECTIONS[decoder_type]
    attention_rank, ffn_rank = rank("self_attn", "q_proj"), rank("mlp", ffn[0])
    fields: dict[str, Any] = {}
    positions = shape("model.embed_positions.weight")[0] if setting == 1 else seq_len or _SEQ_LEN
    if seq_len not in (None, positions):
        raise UserError(
            f"--seq-len: got {seq_len}; expected {positions}, the learned positions of the checkpoint, or "
            "none given"
        )
    if attention_rank or ffn_rank:
        fields["rank"] = attention_rank or ffn_rank
        fields["ffn_rank"] = ffn_rank
    return LPAConfig(
        decoder_type=decoder_type,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=out_features("mlp", ffn[0]),
        num_hidden_layers=layers,
        num_attention_heads=num_attention_heads,
        head_dim=queries // num_attention_heads,
        max_position_embeddings=positions,
        lm_head_bias=True,
        placement=_placement(attention_rank, ffn_rank),
        **fields,
    )


def _placement(attention_rank: int | None, ffn_rank: int | None) -> str:
    if attention_rank and ffn_rank:
        return "all"
    if attention_rank:
        return "attention"
    return "ffn" if ffn_rank else "none"


def import_published(
    checkpoint: Path,
    setting: int,
    *,
    num_attention_heads: int,
    seq_len: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> LPAForCausalLM:
    """A model with the weights of a published checkpoint, every one of them and nothing else.

    Args:
        checkpoint: a safetensors file; its sizes are read from its tensors.
        setting, num_attention_heads, seq_len: see `published_config`.
        out: a directory to write the model to.
        overwrite: replace a model directory there.

    Raises:
        UserError: not such a checkpoint; tensors missing or left over, by name; or `out` holds something.
    """
    if out is None:
        return _read_published(checkpoint, setting, num_attention_heads, seq_len)
    check_output_directory(out, MODEL, overwrite=overwrite)
    model = _read_published(checkpoint, setting, num_attention_heads, seq_len)
    card = CardContent(
        title=out.resolve().name,
        origin="`lpa convert import-published` read it from a checkpoint of the published LPA code.",
        parents=[checkpoint.name],
    )
    with atomic_directory(out, MODEL, overwrite=overwrite) as directory:
        save_model(model, directory, card)
    return model


def _read_published(
    checkpoint: Path, setting: int, num_attention_heads: int, seq_len: int | None
) -> LPAForCausalLM:
    from safetensors.torch import load_file

    if not checkpoint.is_file():
        raise UserError(f"checkpoint {checkpoint}: no such file; expected safetensors")
    try:
        everything = load_file(checkpoint)
    # SafetensorError, the library's own, derives from Exception alone.
    except Exception as error:
        raise UserError(f"checkpoint {checkpoint}: is not a safetensors file ({error})") from error
    # A file with reference results beside the weights keeps the weights below another name.
    weights = {n: t for n, t in everything.items() if n.startswith("weights.")} or everything
    try:
        tensors = rename_tensors(weights, setting)
        config = published_config(
            tensors, setting, num_attention_heads=num_attention_heads, seq_len=seq_len
        )
    except UserError as error:
        if str(error).startswith("--"):
            raise
        reason = str(error).removeprefix("checkpoint: ")
        raise UserError(f"checkpoint {checkpoint}: {reason}") from error
    with torch.device("meta"):
        expected = LPAForCausalLM(config).state_dict()
    problems = [f"missing {name}" for name in expected.keys() - tensors.keys()]
    problems += [f"left over {name}" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    problems += [
        f"{name} is {tensor.dtype}, not of floating point"
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() or tensor.element_size() < 2
    ]
    if problems:
        raise UserError(f"checkpoint {checkpoint}: {'; '.join(sorted(problems)[:5])}")
    model = LPAForCausalLM(config)
    model.load_state_dict(tensors, strict=True)
    return model
