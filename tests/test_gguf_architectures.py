"""Models of other architectures than Llama from a GGUF file: its metadata decides, not the defaults of
transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

from lpa.errors import UserError
from lpa.gguf_import import load_gguf

RMS, LAYER_NORM = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
IDS = torch.arange(30)[None]


def tiny_model(kind: str, **fields: Any) -> Any:
    """A random model of an architecture."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        hidden_size=32,
        intermediate_size=128,
        num_attention_heads=4,
        **{"num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 320, **fields},
        max_position_embeddings=64,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def written(model: Any, source: Path, path: Path, architecture: str, **metadata: Any) -> Path:
    """A GGUF file of a model, with the tokenizer of another such file."""
    gguf = pytest.importorskip("gguf")
    writer, types = gguf.GGUFWriter(path, architecture), gguf.GGUFValueType
    for key, field in gguf.GGUFReader(source).fields.items():
        if key.startswith("tokenizer."):
            kind = field.types[-1] if field.types[0] == types.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=kind)
    writer.add_pad_token_id(0)
    config = model.config
    metadata = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": getattr(config, "num_attention_heads", 0),
        "attention.head_count_kv": getattr(config, "num_key_value_heads", 0),
        **metadata,
    }
    kinds = {float: types.FLOAT32, int: types.UINT32, bool: types.BOOL, list: types.ARRAY}
    for key, value in metadata.items():
        item = kinds[type(value[0])] if isinstance(value, list) else None
        writer.add_key_value(f"{architecture}.{key}", value, kinds[type(value)], sub_type=item)
    weights = model.state_dict()
    for name, place in get_gguf_hf_weights_map(model, TensorProcessor()).items():
        if name != "output.weight" or not config.tie_word_embeddings:
            writer.add_tensor(name, _as_written(weights[place], name, architecture).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_written(weight: torch.Tensor, name: str, architecture: str) -> torch.Tensor:
    """What convert_hf_to_gguf.py of llama.cpp makes of a weight."""
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return weight + 1
    if name.endswith(("ssm_conv1d.weight", "shortconv.conv.weight")):
        return weight.squeeze(1)
    return -weight.exp() if name.endswith("ssm_a") else weight


GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}
GEMMA_KEYS = {RMS: 0.01, "attention.key_length": 8}
BY_LAYER = {"sliding_attention": {"rope_theta": 50.0}, "full_attention": {"rope_theta": 1e3}}
MAMBA = {"state_size": 4, "time_step_rank": 2, "layer_norm_epsilon": 0.01}
MAMBA_KEYS = {f"ssm.{name}": value for name, value in [("conv_kernel", 4), ("state_size", 4)]}
MAMBA_KEYS |= {"ssm.time_step_rank": 2, "ssm.inner_size": 128, RMS: 0.01}


def base(theta: float, **others: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **others}}


@pytest.mark.parametrize(
    ("architecture", "fields", "metadata"),
    [
        (
            "starcoder2",  # its vocabulary is that of the tokenizer
            base(50.0) | {"norm_epsilon": 0.01, "sliding_window": 5, "vocab_size": 300},
            {LAYER_NORM: 0.01, "attention.sliding_window": 5},
        ),
        (
            "stablelm",
            base(50.0, partial_rotary_factor=0.5) | {"layer_norm_eps": 0.01},
            {"rope.dimension_count": 4, LAYER_NORM: 0.01},
        ),
        (
            "nemotron",
            base(50.0, partial_rotary_factor=0.25) | {"norm_eps": 0.01},
            {"rope.dimension_count": 2, LAYER_NORM: 0.01},
        ),
        (
            "phi3",
            base(50.0, partial_rotary_factor=0.75) | {"rms_norm_eps": 0.01, "sliding_window": 5},
            {"rope.dimension_count": 6, RMS: 0.01, "attention.sliding_window": 5},
        ),
        ("phi3", base(50.0), {"rope.dimension_count": 8, RMS: 1e-5, "attention.sliding_window": 0}),
        ("qwen2", base(50.0) | {"rms_norm_eps": 0.01}, {RMS: 0.01}),
        ("qwen3", base(50.0) | {"rms_norm_eps": 0.01, "head_dim": 128}, {RMS: 0.01}),
        (
            "falcon",
            base(50.0) | {"layer_norm_epsilon": 0.01},
            {LAYER_NORM: 0.01},
        ),
        (
            "gemma2",
            base(50.0)
            | GEMMA
            | {"rms_norm_eps": 0.01, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
            GEMMA_KEYS | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        ),
        (
            "gemma2",
            base(50.0) | {"num_hidden_layers": 46, "head_dim": 4, "query_pre_attn_scalar": 8},
            {RMS: 1e-6, "attention.key_length": 4},
        ),
        (
            "gemma3",
            {"rope_parameters": BY_LAYER} | GEMMA | {"rms_norm_eps": 0.01, "sliding_window": 5},
            GEMMA_KEYS | {"rope.freq_base_swa": 50.0, "attention.sliding_window": 5},
        ),
        (
            "lfm2",
            base(50.0)
            | {"norm_eps": 0.01, "vocab_size": 300, "block_auto_adjust_ff_dim": False}
            | {"layer_types": ["conv", "full_attention"]},
            {RMS: 0.01, "attention.head_count_kv": [0, 2], "shortconv.l_cache": 3},
        ),
        ("mamba", MAMBA, MAMBA_KEYS),
    ],
)
def test_what_the_metadata_says(architecture, fields, metadata, exported, tmp_path):
    model = tiny_model({"gemma3": "gemma3_text"}.get(architecture, architecture), **fields)
    rope = getattr(model.config, "rope_parameters", None)
    if rope:
        metadata = metadata | {"rope.freq_base": rope.get("full_attention", rope)["rope_theta"]}
    path = written(model, exported, tmp_path / "model.gguf", architecture, **metadata)
    read, _ = load_gguf(path)
    with torch.no_grad():
        expected = model(IDS).logits
        torch.testing.assert_close(read(IDS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "fields", "metadata", "message"),
    [
        (
            "qwen2",
            {},
            {"rope.dimension_count": 4},
            r"rope\.dimension_count: got 4; expected 8, which qwen2 rotates",
        ),
        (
            "mamba",
            MAMBA,
            MAMBA_KEYS | {"ssm.dt_b_c_rms": True},
            r"ssm\.dt_b_c_rms: got True, which is not read for mamba",
        ),
        (
            "gemma3",
            GEMMA,
            GEMMA_KEYS | {"attention.sliding_window_pattern": [True, False]},
            r"attention\.sliding_window_pattern: got \[True, False\]; expected that of \['sliding",
        ),
    ],
)
def test_what_a_configuration_cannot_say(
    architecture, fields, metadata, message, exported, tmp_path
):
    model = tiny_model({"gemma3": "gemma3_text"}.get(architecture, architecture), **fields)
    path = written(model, exported, tmp_path / "model.gguf", architecture, **metadata)
    with pytest.raises(UserError, match=rf"model\.gguf: cannot be read as GGUF: {message}"):
        load_gguf(path)
