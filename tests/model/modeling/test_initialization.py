"""How a whole model starts: in one walk, module by module, and from saved weights."""

import copy
import math

import pytest
import torch
from helpers.small_models import small_config, small_model
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lpa.lowrank import INITIALIZATIONS, LowRankLinear
from lpa.model import LPAForCausalLM, LPAForSequenceClassification, LPAModel

UNITS = (LowRankLinear, nn.Linear, nn.Embedding, LlamaRMSNorm, nn.LayerNorm)
KINDS = [
    {"decoder_type": decoder_type, "placement": placement, "initialization": method}
    for decoder_type in ("llama", "paper")
    for placement, method in [("none", "scaled"), *(("all", name) for name in INITIALIZATIONS)]
]


def initialized_modules(model):
    """Name and module of what is initialized as one, in the order of the walk."""
    inside = ()
    for name, module in model.named_modules():
        if isinstance(module, UNITS) and not (inside and name.startswith(inside)):
            yield name, module
            if isinstance(module, LowRankLinear):
                inside = (f"{name}.",)


def effective(module):
    return module.to_dense().weight if isinstance(module, LowRankLinear) else module.weight


@pytest.mark.parametrize("fields", KINDS)
def test_a_module_alone_starts_as_in_the_walk_over_the_model(fields):
    walked = small_model(**fields, residual_scaling=True, lm_head_bias=True)
    for module in walked.modules():
        module._is_hf_initialized = False
    torch.manual_seed(5)
    walked.initialize_weights()

    with torch.device("meta"):
        model = LPAForCausalLM(walked.config)
    torch.manual_seed(5)
    seen = 0
    for name, module in initialized_modules(model):
        alone = copy.deepcopy(module).to_empty(device="cpu")
        with torch.no_grad():
            for parameter in alone.parameters():
                parameter.fill_(math.nan)
        model._init_weights(alone)
        expected = walked.get_submodule(name).state_dict()
        for key, value in alone.state_dict().items():
            assert torch.equal(value, expected[key]), f"{name}.{key}"
            seen += 1
    assert seen == len(dict(model.named_parameters()))


def test_the_maps_of_a_pair_do_not_start_again_by_themselves():
    model = small_model()
    pair = model.model.layers[0].self_attn.q_proj
    before = copy.deepcopy(pair.state_dict())
    for part in (pair.down, pair.up):
        model._init_weights(part)
    for key, value in pair.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("fields", KINDS)
def test_residual_scaling_shrinks_what_writes_to_the_stream_and_nothing_else(fields):
    layers = 8
    plain = small_model(**fields, num_hidden_layers=layers)
    scaled = small_model(**fields, num_hidden_layers=layers, residual_scaling=True)
    for (name, before), (_, after) in zip(
        initialized_modules(plain), initialized_modules(scaled), strict=True
    ):
        writes = name.endswith(("o_proj", "down_proj", "fc2"))
        ratio = 1 / math.sqrt(2 * layers) if writes else 1
        # Roundings of float32, after an SVD whose input is rounded otherwise.
        torch.testing.assert_close(
            effective(after), effective(before) * ratio, rtol=1e-4, atol=1e-6, msg=name
        )


@pytest.mark.parametrize("fields", KINDS)
def test_projections_start_with_the_deviation_they_promise(fields):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "rank": 32, "num_hidden_layers": 1}
    model = small_model(**fields, **sizes, initializer_range=0.02)
    for name, module in initialized_modules(model.model.layers):
        if isinstance(module, (LlamaRMSNorm, nn.LayerNorm)):
            continue
        deviation = effective(module).square().mean().sqrt().item()
        expected = 0.02
        if isinstance(module, LowRankLinear):
            inputs, outputs = module.in_features, module.out_features
            expected = {
                "linear": 1 / (3 * math.sqrt(inputs)),
                "cola": 1 / math.sqrt(inputs + outputs),
                "lora": 0.0,
            }.get(fields["initialization"], expected)
        if fields["initialization"] == "spectral":
            # A part of the dense matrix: its largest 32 of 128 singular values hold more than a
            # quarter of its squared norm and less than all.
            assert 0.01 < deviation < 0.02, name
        else:
            assert deviation == pytest.approx(expected, rel=0.05), name  # 4096 entries or more
    biases = [p for n, p in model.named_parameters() if n.endswith("proj.down.bias")]
    bound = 128**-0.5 if fields["initialization"] == "linear" else 0
    assert all(bias.abs().max() <= bound for bias in biases)
    assert all((bias != 0).all() == (bound > 0) for bias in biases)


@pytest.mark.parametrize("method", INITIALIZATIONS)
def test_loaded_weights_stay_and_cost_no_random_number(tmp_path, method):
    saved = small_model(
        placement="all", decoder_type="paper", initialization=method, residual_scaling=True
    )
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(1)
    saved.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    loaded = LPAForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert (loaded.config.initialization, loaded.config.residual_scaling) == (method, True)
    for name, parameter in saved.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


@pytest.mark.parametrize("method", INITIALIZATIONS)
def test_what_a_checkpoint_lacks_starts_and_the_rest_is_loaded(tmp_path, method):
    """A base model saved without its last layer's o_proj, loaded under a new head."""
    config = small_config(initialization=method)
    torch.manual_seed(0)
    saved = LPAModel(config)
    weights = saved.state_dict()
    missing = [name for name in weights if name.startswith("layers.1.self_attn.o_proj")]
    saved.save_pretrained(
        tmp_path, state_dict={k: v + 1 for k, v in weights.items() if k not in missing}
    )
    loaded = LPAForSequenceClassification.from_pretrained(tmp_path)
    for name, value in weights.items():
        if name not in missing:
            assert torch.equal(loaded.model.get_parameter(name), value + 1), name
    # 64 entries, whose sample deviation errs by 9%.
    assert loaded.score.weight.std().item() == pytest.approx(config.initializer_range, rel=0.4)
    product = loaded.model.layers[1].self_attn.o_proj.to_dense().weight
    own = {"linear": 1 / (3 * math.sqrt(32)), "spectral": 0.22, "cola": 1 / 8, "lora": 0.0}
    expected = own.get(method, 0.3)
    assert product.std().item() == pytest.approx(expected, rel=0.2)
