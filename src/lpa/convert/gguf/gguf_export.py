"""A stock Llama directory as one GGUF file, which llama.cpp and what builds on it load."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from lpa.convert.gguf.gguf_tokenizer import GGUFTokenizer, read_gguf_tokenizer
from lpa.errors import UserError
from lpa.model.loading import config_fields, load_model, model_directory
from lpa.storage.files import created_directories, sync
from lpa.storage.outputs import check_output_file, written_files
from lpa.storage.run_directory import FINAL_DIRECTORY


def export_gguf(
    directory: Path, out: Path, *, dtype: str = "float16", overwrite: bool = False
) -> int:
    """Write a GGUF file; returns its size in bytes.

    Args:
        directory: a `LlamaForCausalLM` with a byte-level BPE tokenizer, such as a merged run.
        out: the file to make, whole or not at all.
        dtype: of the matrices, `float16` or `float32`; vectors are float32.
        overwrite: replace `out`.

    Raises:
        UserError: `out` exists, the package `gguf` is missing, or the model or its tokenizer is not one
            that this writes.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError("gguf: the package is not installed; pip install 'lpa[gguf]'") from error
    out = check_output_file(out, "a GGUF file", _is_gguf, overwrite=overwrite)
    if dtype not in ("float16", "float32"):
        raise UserError(f"--dtype: got {dtype!r}; expected float16 or float32")
    if (directory / FINAL_DIRECTORY).is_dir():
        raise UserError(
            f"model {directory}: is a run, whose model is not a stock Llama yet; merge it first: "
            f"lpa convert merge {directory} --out merged"
        )
    _check_is_llama(directory)
    tokenizer = read_gguf_tokenizer(directory)
    model = _read_model(directory)
    tokenizer.fill_up(directory, model.config.vocab_size)
    _check_ends(directory, tokenizer, model)

    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with written_files(out), created_directories(out.parent):
        try:
            writer = gguf.GGUFWriter(temporary, "llama")
            _add_architecture(writer, gguf, model.config, dtype)
            _add_tokenizer(writer, gguf, tokenizer, model)
            _add_tensors(writer, gguf, model, dtype)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            os.replace(temporary, out)
        finally:
            temporary.unlink(missing_ok=True)
    sync(out.parent)
    return out.stat().st_size


def _is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def _check_is_llama(directory: Path) -> None:
    fields = config_fields(model_directory(directory))
    kind = fields.get("model_type")
    if kind != "llama":
        raise UserError(
            f"model {directory}: model_type {kind}; expected llama. An LPA model becomes one by "
            "`lpa convert merge`"
        )
    if fields.get("quantization_config") is not None:
        raise UserError(
            f"model {directory}: has a quantization_config; expected plain weights; low-rank pairs are "
            f"merged first: lpa convert merge {directory} --out merged"
        )


def _read_model(directory: Path) -> LlamaForCausalLM:
    model = load_model(directory, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM), "as the configuration says"
    rope = model.config.rope_parameters or {}
    if rope.get("rope_type", "default") not in ("default", "linear"):
        raise UserError(
            f"model {directory}: rope_type {rope['rope_type']}; expected default or linear"
        )
    for name, held in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if getattr(model.config, name) != held:
            raise UserError(
                f"model {directory}: {name} {getattr(model.config, name)}; expected {held}, as "
                "llama.cpp computes a Llama"
            )
    return model


def _add_architecture(writer: Any, gguf: Any, config: Any, dtype: str) -> None:
    rope = config.rope_parameters or {}
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(
        gguf.LlamaFileType.MOSTLY_F16 if dtype == "float16" else gguf.LlamaFileType.ALL_F32
    )


def _add_tokenizer(writer: Any, gguf: Any, tokenizer: GGUFTokenizer, model: Any) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.splitting)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types([gguf.TokenType[kind] for kind in tokenizer.kinds])
    writer.add_token_merges(tokenizer.merges)
    writer.add_add_bos_token(tokenizer.bos is not None)
    writer.add_add_eos_token(tokenizer.eos is not None)
    ends = _ends(model)
    keys = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for end, add in zip(ends, keys, strict=False):
        add(end)
    begins = (tokenizer.bos, model.config.bos_token_id, *ends)
    begin = next((number for number in begins if number is not None), None)
    if begin is not None:
        writer.add_bos_token_id(begin)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    elif tokenizer.chat_template:
        writer.add_chat_template(
            [{"name": name, "template": text} for name, text in tokenizer.chat_template.items()]
        )


def _check_ends(directory: Path, tokenizer: GGUFTokenizer, model: Any) -> None:
    """Generation stops at the ends of a text, a turn and a message; the first may be set after texts."""
    ends = _ends(model)
    if tokenizer.eos is not None and tokenizer.eos not in ends[:1]:
        raise UserError(
            f"model {directory}: eos_token_id {ends[0] if ends else None}; expected {tokenizer.eos}, "
            "the token that the tokenizer sets after each text"
        )
    if len(ends) > 3:
        raise UserError(
            f"model {directory}: eos_token_id {ends}; expected at most three: a GGUF file holds the ends "
            "of a text, of a turn and of a message"
        )


def _ends(model: Any) -> list[int]:
    """The tokens at which generation stops, that of the configuration first."""
    found: list[int] = []
    for value in (model.config.eos_token_id, model.generation_config.eos_token_id):
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number not in found:
                found.append(number)
    return found


def _add_tensors(writer: Any, gguf: Any, model: LlamaForCausalLM, dtype: str) -> None:
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().numpy()
        if name.endswith("q_proj.weight"):
            tensor = _interleave(tensor, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            tensor = _interleave(tensor, config.num_key_value_heads)
        if tensor.ndim >= 2:
            tensor = tensor.astype(dtype)
        stem = names.get_name(name.removesuffix(".weight"))
        assert stem is not None, f"no GGUF name for {name}"
        writer.add_tensor(f"{stem}.weight", np.ascontiguousarray(tensor))


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys from transformers' order to llama.cpp's.

    RoPE turns pairs of features: transformers pairs feature i of a head with i + head_dim / 2,
    llama.cpp pairs neighbors.
    """
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    return halves.swapaxes(1, 2).reshape(rows, width)
