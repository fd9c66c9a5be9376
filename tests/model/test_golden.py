"""The decoder reproduces what an independent implementation computed."""

import pytest
import torch
from safetensors import safe_open

from lpa.model import LPAConfig, LPAForCausalLM

# Their name of a part -> ours.
NAMES = {
    "lpa": "model",
    "token_embedding": "embed_tokens",
    "transformer_blocks": "layers",
    "attention": "self_attn",
    "ffn": "mlp",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "fc": "lm_head",
    "0": "down",
    "1": "up",
}


def our_name(name: str) -> str:
    parts = name.removeprefix("weights.").split(".")
    # Factors are numbered in the place before the last; elsewhere a number is that of a layer.
    return ".".join(
        part if part.isdigit() and place != len(parts) - 2 else NAMES.get(part, part)
        for place, part in enumerate(parts)
    )


@pytest.fixture(scope="module")
def golden(shared):
    with safe_open(shared / "golden" / "setting2.safetensors", framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_setting_2(golden):
    metadata, tensors = golden
    config = LPAConfig(
        vocab_size=tensors["logits"].shape[-1],
        hidden_size=int(metadata["d"]),
        intermediate_size=int(metadata["ffn"]),
        num_hidden_layers=int(metadata["L"]),
        num_attention_heads=int(metadata["h"]),
        head_dim=int(metadata["dh"]),
        rank=int(metadata["ra"]),
        lm_head_bias=True,
    )
    model = LPAForCausalLM(config).eval()
    weights = {our_name(n): t for n, t in tensors.items() if n.startswith("weights.")}
    model.load_state_dict(weights, strict=True)

    input_ids = tensors["input_ids"].long()
    output = model(input_ids, labels=input_ids)
    output.loss.backward()
    grad_norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()

    torch.testing.assert_close(output.logits, tensors["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, tensors["loss"].squeeze(), atol=1e-5, rtol=0)
    torch.testing.assert_close(grad_norm, tensors["grad_norm"].squeeze(), atol=0, rtol=1e-4)
