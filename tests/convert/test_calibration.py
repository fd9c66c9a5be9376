"""Moments of what projections read, beside those of all inputs written down and multiplied out."""

import pytest
import torch
import transformers as hf
from helpers.architectures import tiny
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

from lpa.convert.calibration import capture_layer_inputs, input_moments
from lpa.convert.factorize import factorize
from lpa.convert.factorize_layers import factorize_layers
from lpa.errors import UserError
from lpa.model.surgery.projections import find_decoder_layers, find_projections

pytestmark = pytest.mark.filterwarnings("ignore::lpa.errors.LPAWarning")


class Experts(nn.Module):
    """A mixture of experts: each token goes to its two best, each expert runs on its tokens alone."""

    def __init__(self, config, experts=4):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, experts, bias=False)
        self.experts = nn.ModuleList(LlamaMLP(config) for _ in range(experts))
        nn.init.normal_(self.gate.weight)

    def forward(self, hidden_states):
        rows = hidden_states.flatten(0, 1)
        weights, chosen = self.gate(rows).softmax(-1).topk(2)
        output = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            tokens, slot = (chosen == number).nonzero(as_tuple=True)
            output[tokens] += weights[tokens, slot, None] * expert(rows[tokens])
        return output.view_as(hidden_states)


class Twice(nn.Module):
    """One MLP that runs on the tokens of each window in two parts of different length."""

    def __init__(self, config):
        super().__init__()
        self.inner = LlamaMLP(config)

    def forward(self, hidden_states):
        return torch.cat([self.inner(hidden_states[:, :5]), self.inner(hidden_states[:, 5:])], 1)


def windows():
    # Two and a half batches: the last has fewer rows than those before.
    return torch.randint(300, (10, 24), generator=torch.Generator().manual_seed(1))


def model_with(make):
    model = tiny("llama").eval()
    torch.manual_seed(0)
    for layer in model.model.layers:
        layer.mlp = make(model.config)
    return model


def projections(layer):
    return {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and name != "mlp.gate"
    }


@torch.no_grad()
def inputs_by_hand(model, layer, modules):
    """All that each module read in a plain forward pass."""
    read = {name: [] for name in modules}
    handles = [
        module.register_forward_pre_hook(
            lambda _, arguments, name=name: read[name].append(
                arguments[0].reshape(-1, arguments[0].shape[-1])
            )
        )
        for name, module in modules.items()
    ]
    model(windows())
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows).double() for name, rows in read.items()}


@pytest.mark.parametrize("make", [LlamaMLP, Experts, Twice])
def test_moments_are_means_over_the_rows_that_each_projection_read(make):
    model = model_with(make)
    _, layers = find_decoder_layers(model)
    modules = projections(layers[0])
    expected = inputs_by_hand(model, layers[0], modules)
    groups = input_moments(capture_layer_inputs(model, windows()), layers[0], 0, modules)
    assert sorted(name for group in groups for name in group.names) == sorted(modules)
    rows = {len(x) for x in expected.values()}
    assert len(rows) > (1 if make is Experts else 0)
    for group in groups:
        for name in group.names:
            x = expected[name]
            assert group.rows == len(x), name
            # Batches of windows add up in another order.
            torch.testing.assert_close(group.moment, x.T @ x / len(x), rtol=1e-4, atol=1e-7)
    shared = [set(group.names) for group in groups]
    assert {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"} in shared
    if make is Experts:
        assert {"mlp.experts.3.gate_proj", "mlp.experts.3.up_proj"} in shared


@pytest.mark.parametrize("make", [Experts, Twice])
def test_a_whitened_factorization_of_full_rank_is_exact(make):
    model, tokens = model_with(make), windows()
    before = model(tokens).logits
    prefix, layers = find_decoder_layers(model)
    ranks = {
        f"{prefix}.{index}.{name}": min(module.weight.shape)
        for index, layer in enumerate(layers)
        for name, module in projections(layer).items()
    }
    errors = factorize_layers(model, ranks, "svd-llm", tokens)
    torch.testing.assert_close(model(tokens).logits, before, atol=1e-4, rtol=0)
    assert max(errors.values()) < 1e-4


def test_a_projection_that_reads_other_tokens_once_factorized_is_not_corrected_for_drift():
    model = model_with(Experts)
    name = "model.layers.0.mlp.experts.1.up_proj"
    with pytest.raises(
        UserError, match=rf"--method svd-llm-update: {name} does not read every token"
    ):
        factorize_layers(model, {name: 4}, "svd-llm-update", windows())


SIZES = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4}
GEMMA = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
GEMMA |= {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
GEMMA |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300}
OTHERS = {
    "alibi by window": lambda: hf.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4),
    "falcon": lambda: hf.FalconConfig(**SIZES, num_hidden_layers=2, alibi=True),
    "embeddings by layer": lambda: hf.Gemma4TextConfig(**GEMMA, num_kv_shared_layers=0),
    "keys of other layers": lambda: hf.Gemma4TextConfig(**GEMMA, num_kv_shared_layers=2),
    "eager": lambda: hf.LlamaConfig(
        **SIZES, intermediate_size=64, num_hidden_layers=2, attn_implementation="eager"
    ),
}


def other(name):
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(OTHERS[name]()).eval()


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_the_stream_is_what_the_layers_of_the_model_read(name):
    model = other(name)
    _, layers = find_decoder_layers(model)
    read = {}
    handle = layers[-1].register_forward_hook(
        lambda _, __, output: read.update(last=output[0] if isinstance(output, tuple) else output)
    )
    model(windows(), use_cache=False)
    handle.remove()
    stream = capture_layer_inputs(model, windows())
    for index, layer in enumerate(layers):
        stream.advance(layer, index)
    torch.testing.assert_close(stream.hidden, read["last"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_the_cache_is_counted_by_layer(name):
    model = other(name)
    ranks = dict.fromkeys(find_projections(model, "ffn"), 4)
    _, figures = factorize(model, ranks, "svd-llm", windows())
    widths = {
        "embeddings by layer": 4 * 2 * 512,
        "keys of other layers": 2 * 2 * 512,
        "falcon": 2 * 8,  # one head of keys for all
    }
    assert figures.kv_bytes_per_token_dense == 4 * 2 * widths.get(name, 2 * 32)


def test_a_model_without_attention_has_no_cache_of_keys():
    config = hf.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = hf.MambaForCausalLM(config).eval()
    ranks = dict.fromkeys(find_projections(model, projections="in_proj"), 4)
    _, figures = factorize(model, ranks, "svd-llm", windows())
    assert figures.kv_bytes_per_token_dense == 0


def test_arguments_that_are_the_same_for_all_windows_are_kept_once():
    stream = capture_layer_inputs(tiny("llama"), windows())
    assert stream.calls[0] is stream.calls[1]
    assert stream.calls[0] is not stream.calls[2]  # of fewer windows


def test_states_that_layers_pass_on_are_not_mixed_with_those_of_the_factorized_model():
    model = other("keys of other layers")
    name = "model.layers.0.self_attn.o_proj"
    with pytest.raises(UserError, match=r"--method svd-llm-update: layers of the model pass on"):
        factorize_layers(model, {name: 4}, "svd-llm-update", windows())


def test_a_model_of_several_streams_is_refused():
    config = hf.Gemma3nTextConfig(
        **GEMMA, num_kv_shared_layers=0, laurel_rank=4, activation_sparsity_pattern=None
    )
    model = hf.Gemma3nForCausalLM(config).eval()
    with pytest.raises(UserError, match=r"Gemma3nForCausalLM does more between its layers than"):
        capture_layer_inputs(model, windows())


def test_an_expert_that_no_token_is_sent_to_is_named():
    model = model_with(Experts)
    with torch.no_grad():
        model.model.layers[
            0
        ].mlp.gate.weight.zero_()  # a draw, which the same two win for all tokens
    down = {
        f"model.layers.0.mlp.experts.{number}.down_proj": expert.down_proj
        for number, expert in enumerate(model.model.layers[0].mlp.experts)
    }
    read = inputs_by_hand(model, model.model.layers[0], down)
    idle = next(name for name, rows in read.items() if not len(rows))
    with pytest.raises(UserError, match=rf"{idle} gets no input from the calibration text"):
        factorize_layers(model, dict.fromkeys(down, 4), "svd-llm", windows())
