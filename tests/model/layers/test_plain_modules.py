"""Whatever makes a module more than its weight is called, wherever a shorter way reads the weight."""

import accelerate
import peft
import pytest
import torch
from helpers.small_models import small_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune

from lpa.lowrank import is_plain_linear, sltrain
from lpa.model import LatentCache
from lpa.model.layers import fused_projections


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


class DoubledWeight(torch.Tensor):
    """Quantized weights are such subclasses, which say themselves what a product with them is."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.linear:
            with torch._C.DisableTorchFunctionSubclass():
                return 2 * function(*args, **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs or {})


def subclass(module):
    module.__class__ = Doubled


def parametrization(module):
    nn.utils.parametrize.register_parametrization(module, "weight", Twice())


def weight_norm(module):
    nn.utils.parametrizations.weight_norm(module)
    module.parametrizations.weight.original0.data.mul_(2)


def forward_hook(module):
    module.register_forward_hook(lambda module, inputs, output: 2 * output)


def forward_pre_hook(module):
    module.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def replaced_forward(module):
    module.forward = lambda x: 2 * type(module).forward(module, x)


def pruning(module):
    prune.l1_unstructured(module, "weight", 0.5)


def partitioned(module):
    """As ZeRO 3 does: the weight is there only while the module computes."""
    whole = 2 * module.weight.detach()
    module.weight.data = torch.empty(0)

    def gather(module, inputs):
        module.weight.data = whole

    def release(module, inputs, output):
        module.weight.data = torch.empty(0)

    module.register_forward_pre_hook(gather)
    module.register_forward_hook(release)


def tensor_subclass(module):
    data = module.weight.detach().as_subclass(DoubledWeight)
    module.weight = nn.Parameter(data, requires_grad=False)


MODULE_CHANGES = [
    subclass,
    parametrization,
    weight_norm,
    forward_hook,
    forward_pre_hook,
    replaced_forward,
    pruning,
    partitioned,
    tensor_subclass,
]


def to_every_factor(change):
    def apply(model):
        for name, module in list(model.named_modules()):
            if name.endswith((".down", ".up")):
                change(module)
        return model

    apply.__name__ = change.__name__
    return apply


def lora(model):
    targets = ["down", "up"]
    return peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    )


def flipped(module, inputs, output):
    """Unlike a doubling it is seen through the norm at the end of a branch."""
    return output.flip(-1)


def hook_on_pairs(model):
    for layer in model.model.layers:
        layer.self_attn.v_proj.register_forward_hook(flipped)
    return model


def replaced_forward_of_pairs(model):
    for layer in model.model.layers:
        pair = layer.self_attn.v_proj
        pair.forward = lambda x, pair=pair: type(pair).forward(pair, x).flip(-1)
    return model


MODEL_CHANGES = [
    *map(to_every_factor, MODULE_CHANGES),
    lora,
    hook_on_pairs,
    replaced_forward_of_pairs,
]
KINDS = {
    "llama": {"placement": "all"},
    "paper": {"decoder_type": "paper", "placement": "all"},
    "cola": {"placement": "all", "low_rank_method": "cola"},
    "sltrain": {"placement": "all", "low_rank_method": "sltrain"},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
every_change = pytest.mark.parametrize("change", MODEL_CHANGES, ids=lambda c: c.__name__)


@pytest.fixture(scope="module")
def ids():
    """As many tokens as fuse the first factors."""
    return torch.randint(97, (8, 64), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@every_kind
@every_change
def test_logits_are_those_of_modules_that_are_called(kind, change, ids, monkeypatch):
    unchanged = small_model(**kind)(ids).logits
    fused = change(small_model(**kind))(ids).logits
    monkeypatch.setattr(fused_projections, "_MIN_TOKENS", 10**9)
    monkeypatch.setattr(sltrain, "is_plain_linear", lambda module: False)
    apart = change(small_model(**kind))(ids).logits
    torch.testing.assert_close(fused, apart, atol=2e-4, rtol=1e-3)
    assert (fused - unchanged).abs().max() > 0.1  # the change changes something


@torch.no_grad()
@every_kind
@every_change
def test_the_latent_cache_sees_the_same(kind, change, ids):
    def logits(**options):
        model = change(small_model(**kind))
        outputs = model(ids[:, :16], use_cache=True, **options)
        return model(ids[:, 16:17], past_key_values=outputs.past_key_values).logits

    latent = logits(past_key_values=LatentCache(config=small_model(**kind).config))
    torch.testing.assert_close(latent, logits(), atol=2e-4, rtol=1e-3)


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_give_the_same(kind, where, ids, tmp_path):
    model = small_model(**kind)
    expected, generated = model(ids).logits, generate(model, ids)
    if where == "cpu":
        accelerate.cpu_offload(model)
    else:
        accelerate.disk_offload(model, tmp_path)
    torch.testing.assert_close(model(ids).logits, expected, atol=2e-4, rtol=1e-3)
    assert torch.equal(generate(model, ids), generated)
    assert torch.equal(generate(model, ids, cache_implementation="latent"), generated)


def generate(model, ids, **options):
    return model.generate(ids[:, :8], max_new_tokens=4, do_sample=False, pad_token_id=0, **options)


@every_kind
def test_every_factor_under_lora_is_trained(kind, ids):
    model = lora(small_model(**kind)).train()
    model(input_ids=ids, labels=ids).loss.backward()
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    assert adapters
    assert all(p.grad is not None and p.grad.any() for p in adapters)


@pytest.mark.parametrize("change", MODULE_CHANGES, ids=lambda c: c.__name__)
def test_a_changed_linear_map_is_not_plain(change):
    module = nn.Linear(4, 4)
    assert is_plain_linear(module)
    change(module)
    assert not is_plain_linear(module)


def test_a_linear_map_without_content_is_plain():
    """So that an export, or a simulation, follows the shorter ways that a run takes."""
    with FakeTensorMode():
        assert is_plain_linear(nn.Linear(4, 4))
