"""Quantized maps by torchao and bitsandbytes are called, wherever a shorter way reads weights."""

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import small_model
from torch import nn

from lpa.lowrank import is_plain_linear
from lpa.model import LatentCache
from lpa.model.layers import fused_projections

FACTORS = (".down", ".up")
HEAD = ("lm_head",)


def torchao_int8(model, names):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(
        model,
        torchao.Int8WeightOnlyConfig(),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and name.endswith(names),
    )


def torchao_int8_activations(model, names):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(
        model,
        torchao.Int8DynamicActivationInt8WeightConfig(),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and name.endswith(names),
    )


def bitsandbytes_int8(model, names):
    maps = pytest.importorskip("bitsandbytes").nn
    _replace(model, names, lambda *sizes: maps.Linear8bitLt(*sizes, has_fp16_weights=False))


def bitsandbytes_4bit(model, names):
    maps = pytest.importorskip("bitsandbytes").nn
    _replace(model, names, lambda *sizes: maps.Linear4bit(*sizes, compute_dtype=torch.float32))


def _replace(model, names, build):
    """As transformers does: a map of another class takes the weight, and quantizes it on the device."""
    for name, module in list(model.named_modules()):
        if name.endswith(names):
            quantized = build(module.in_features, module.out_features, module.bias is not None)
            quantized.load_state_dict(module.state_dict())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, quantized.to("cpu"))


@pytest.fixture(
    params=[torchao_int8, torchao_int8_activations, bitsandbytes_int8, bitsandbytes_4bit],
    ids=lambda quantize: quantize.__name__,
)
def quantized(request):
    """Makes a model whose maps with such names are quantized: `quantized(FACTORS)`."""

    def make(names):
        model = small_model(placement="all", hidden_size=64, num_attention_heads=4, rank=16)
        request.param(model, names)
        return model

    return make


@pytest.fixture(scope="module")
def ids():
    return torch.randint(97, (8, 64), generator=torch.Generator().manual_seed(0))


def test_a_quantized_map_is_not_plain(quantized):
    model = quantized((*FACTORS, *HEAD))
    for name, module in model.named_modules():
        if name.endswith((*FACTORS, *HEAD)):
            assert not is_plain_linear(module), name


@torch.no_grad()
def test_logits_are_those_of_modules_that_are_called(quantized, ids, monkeypatch):
    fused = quantized(FACTORS)(ids).logits
    monkeypatch.setattr(fused_projections, "_MIN_TOKENS", 10**9)
    torch.testing.assert_close(quantized(FACTORS)(ids).logits, fused)


@torch.no_grad()
def test_the_latent_cache_sees_the_same(quantized, ids):
    model = quantized(FACTORS)

    def logits(**options):
        outputs = model(ids[:, :16], use_cache=True, **options)
        return model(ids[:, 16:17], past_key_values=outputs.past_key_values).logits

    latent = logits(past_key_values=LatentCache(config=model.config))
    # Activations of another batch are rounded on another scale.
    torch.testing.assert_close(latent, logits(), atol=2e-2, rtol=2e-2)


@torch.no_grad()
def test_the_loss_is_that_of_the_logits_of_a_quantized_head(quantized, ids):
    model = quantized(HEAD)
    outputs = model(input_ids=ids, labels=ids, return_logits=True)
    expected = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, expected, atol=1e-3, rtol=1e-3)
    alone = model(input_ids=ids, labels=ids, return_logits=False).loss
    torch.testing.assert_close(alone, outputs.loss, atol=1e-3, rtol=1e-3)
