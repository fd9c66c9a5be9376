"""The loss of a model whose head is more than its weight, beside the loss of its logits."""

import accelerate
import peft
import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import small_model


def loss_of_logits(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def with_adapter(model):
    config = peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def with_hook(model):
    model.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def with_parametrization(model):
    class Twice(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(model.lm_head, "weight", Twice())
    return model


def partitioned(model):
    """As ZeRO 3 does: the weight is there only while the module computes."""
    whole = model.lm_head.weight.detach().clone()
    model.lm_head.weight.data = torch.empty(0)

    def fill(module, *_):
        module.weight.data = whole

    def empty(module, *_):
        module.weight.data = torch.empty(0)

    model.lm_head.register_forward_pre_hook(fill)
    model.lm_head.register_forward_hook(empty)
    return model


def offloaded(model):
    return accelerate.cpu_offload(model)


@pytest.fixture
def ids():
    return torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("return_logits", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "change",
    [lambda model: model, with_adapter, with_hook, with_parametrization, partitioned, offloaded],
)
def test_the_loss_is_that_of_the_logits(ids, change, training, return_logits):
    model = change(small_model()).train(training)
    loss = model(input_ids=ids, labels=ids, return_logits=return_logits).loss
    logits = model(input_ids=ids).logits
    torch.testing.assert_close(loss, loss_of_logits(logits, ids))


@pytest.mark.parametrize("return_logits", [True, False])
def test_an_adapter_on_the_head_is_trained(ids, return_logits):
    model = with_adapter(small_model()).train()
    model(input_ids=ids, labels=ids, return_logits=return_logits).loss.backward()
    adapter = [p for name, p in model.named_parameters() if "lora_" in name]
    assert adapter
    assert all(p.grad is not None and p.grad.any() for p in adapter)


@pytest.mark.parametrize("return_logits", [True, False])
def test_a_model_compiles_whole_with_labels(ids, return_logits):
    model = small_model().train()
    options = {"use_cache": False, "return_logits": return_logits}
    expected = model(input_ids=ids, labels=ids, **options).loss
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss = compiled(input_ids=ids, labels=ids, **options).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
