import functools

import pytest
import torch
from helpers.small_models import small_model
from torch.utils.checkpoint import CheckpointPolicy

from lpa.errors import UserError
from lpa.model.activation_checkpointing import (
    ACTIVATION_CHECKPOINTING_MODES,
    _latent_policy,
    apply_activation_checkpointing,
)
from lpa.model.compile import compile_layers, compile_seconds

KINDS = [
    {},
    {"placement": "all", "num_key_value_heads": 2},
    {"placement": "none"},
    {"decoder_type": "paper", "resid_pdrop": 0.1, "attention_dropout": 0.1},
]


def loss_and_gradients(model):
    tokens = torch.randint(97, (2, 48), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)  # dropout
    loss = model.train()(tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("mode", ACTIVATION_CHECKPOINTING_MODES[1:])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_are_the_same_to_the_bit(kind, mode):
    loss, gradients = loss_and_gradients(small_model(**kind))
    model = small_model(**kind)
    apply_activation_checkpointing(model, mode)
    again, others = loss_and_gradients(model)
    assert torch.equal(loss, again)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, others[name]), name


@pytest.mark.parametrize(
    ("dropout", "keeps"),
    [({"attention_dropout": 0.1, "resid_pdrop": 0.1}, False), ({"attention_dropout": 0.1}, True)],
)
def test_a_kernel_that_draws_runs_again_where_dropout_follows(dropout, keeps):
    """Else what follows would draw from another place of the stream; only kernels of GPUs draw inside."""
    policy = _latent_policy(small_model(**dropout).model.layers[0])
    flash = torch.ops.aten._scaled_dot_product_flash_attention.default
    assert (policy(None, flash) == CheckpointPolicy.MUST_SAVE) is keeps


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the shapes of matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = []
        self.attentions = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default:
            self.shapes.append((args[0].shape[1], args[1].shape[1]))
        self.attentions += "scaled_dot_product" in str(function) and "backward" not in str(function)
        return function(*args, **(kwargs or {}))


def recomputed(mode: str) -> Products:
    """What the backward pass of one layer computes beyond what it does without checkpointing."""
    passes = {}
    for name in ("none", mode):
        model = small_model(num_hidden_layers=1, ranks={"k_proj": 6, "v_proj": 5}).train()
        apply_activation_checkpointing(model, name)
        tokens = torch.zeros(2, 48, dtype=torch.long)
        output = model.model(tokens, use_cache=False).last_hidden_state
        with Products() as passes[name]:
            output.sum().backward()
    extra = passes[mode]
    for shape in passes["none"].shapes:
        extra.shapes.remove(shape)
    return extra


def test_latent_recomputes_second_factors_and_no_other_product():
    # q, k, v and o: (rank, width)
    extra = recomputed("latent")
    assert sorted(extra.shapes) == [(5, 32), (6, 32), (8, 32), (8, 32)]
    assert extra.attentions == 0


def test_full_recomputes_the_layer():
    extra = recomputed("full")
    assert len(extra.shapes) > 6
    assert extra.attentions == 1


def test_another_mode_is_refused():
    with pytest.raises(UserError, match="activation_checkpointing: got 'some'; expected one of"):
        apply_activation_checkpointing(small_model(), "some")


@pytest.mark.parametrize("mode", ACTIVATION_CHECKPOINTING_MODES[1:])
def test_compiled_layers_have_the_gradients_of_plain_ones(mode, monkeypatch):
    """Without a graph break, or `fullgraph` would refuse. Those without a mode: see test_compile.py.

    The graphs of both passes are made and run as they are; test_trainer.py has code built for a mode.
    """
    compile_module = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    loss, gradients = loss_and_gradients(small_model())
    model = small_model()
    apply_activation_checkpointing(model, mode)
    compile_layers(model, torch.device("cpu"))
    before = compile_seconds()
    again, others = loss_and_gradients(model)
    assert compile_seconds() > before
    torch.testing.assert_close(loss, again)
    for name, gradient in gradients.items():
        # float32 sums in another order
        torch.testing.assert_close(gradient, others[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("has_gpu", [False, True])
def test_no_compiler_is_one_line(monkeypatch, has_gpu):
    """For a model on the CPU, whatever else the machine has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    # torch's own way to change a setting for a while: pytest's leaves this one deleted.
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match=r"train.compile: found no C\+\+ compiler"),
    ):
        compile_layers(small_model(), torch.device("cpu"))
