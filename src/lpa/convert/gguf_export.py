"""A stock Llama directory as one GGUF file, which llama.cpp and what builds on it load."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from lpa.errors import UserError
from lpa.files import fsync_directory


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
        UserError: `out` exists, the package `gguf` is missing, or the model is not one that this
            writes.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError("gguf: the package is not installed; pip install 'lpa[gguf]'") from error
    if out.exists() and not overwrite:
        raise UserError(f"--out {out}: already exists; choose a new file or pass --overwrite")
    if dtype not in ("float16", "float32"):
        raise UserError(f"--dtype: got {dtype!r}; expected float16 or float32")
    if (directory / "final").is_dir():
        raise UserError(
            f"model {directory}: is a run, whose model is not a stock Llama yet; merge it first: "
            f"lpa convert merge {directory} --out merged"
        )
    tokenizer = _read_tokenizer(directory)
    model = _read_model(directory)

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        writer = gguf.GGUFWriter(temporary, "llama")
        _add_architecture(writer, gguf, model.config, dtype)
        _add_tokenizer(writer, gguf, tokenizer, model.config)
        template = directory / "chat_template.jinja"
        if template.is_file():
            writer.add_chat_template(template.read_text(encoding="utf-8"))
        _add_tensors(writer, gguf, model, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(out.parent)
    return out.stat().st_size


def _read_model(directory: Path) -> LlamaForCausalLM:
    path = directory / "config.json"
    kind = json.loads(path.read_text()).get("model_type") if path.is_file() else None
    if kind != "llama":
        raise UserError(
            f"model {directory}: model_type {kind}; expected llama. An LPA model becomes one by "
            "`lpa convert merge`"
        )
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    rope = model.config.rope_parameters or {}
    if rope.get("rope_type", "default") not in ("default", "linear"):
        raise UserError(
            f"model {directory}: rope_type {rope['rope_type']}; expected default or linear"
        )
    return model


def _read_tokenizer(directory: Path) -> dict[str, Any]:
    """The parsed `tokenizer.json`, a byte-level BPE with a splitting rule that llama.cpp has a name for."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"model {directory}: has no tokenizer.json")
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    if tokenizer["model"].get("type") != "BPE" or _splitting_rule(tokenizer) is None:
        raise UserError(
            f"tokenizer {path}: expected a byte-level BPE that splits as GPT-2 does, as `lpa prepare` "
            "trains, or as SmolLM does, which parts digits first; other tokenizers are not converted"
        )
    return tokenizer


def _splitting_rule(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for how text is split before merging."""
    rule = tokenizer.get("pre_tokenizer") or {}
    name, parts = "gpt-2", [rule]
    if rule.get("type") == "Sequence":
        digits, *parts = rule["pretokenizers"]
        if digits.get("type") != "Digits" or not digits.get("individual_digits"):
            return None
        name = "smollm"
    if len(parts) != 1 or parts[0].get("type") != "ByteLevel":
        return None
    plain = not parts[0].get("add_prefix_space") and parts[0].get("use_regex", True)
    return name if plain else None


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


def _add_tokenizer(writer: Any, gguf: Any, tokenizer: dict[str, Any], config: Any) -> None:
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    names = {number: name for name, number in tokenizer["model"]["vocab"].items()} | special
    tokens, kinds = [], []
    for number in range(config.vocab_size):
        # A model may have rows that no token uses.
        tokens.append(names.get(number, f"[unused{number}]"))
        if number in special:
            kinds.append(gguf.TokenType.CONTROL)
        else:
            kinds.append(gguf.TokenType.NORMAL if number in names else gguf.TokenType.UNUSED)
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting_rule(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_add_bos_token(False)
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    if end is not None:
        writer.add_eos_token_id(end)
        writer.add_bos_token_id(end if config.bos_token_id is None else config.bos_token_id)


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
    llama.cpp pairs neighbours.
    """
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    return halves.swapaxes(1, 2).reshape(rows, width)
