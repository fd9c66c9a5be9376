"""Parts of a model on two GPUs, as `device_map="auto"` puts them, by tensors without content."""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from helpers.small_models import small_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lpa.model import LPAForCausalLM


def place(module, device):
    for name, tensor in module._parameters.items():
        if tensor is not None:
            module._parameters[name] = nn.Parameter(torch.empty(tensor.shape, device=device))
    hook = AlignDevicesHook(execution_device=device)
    hook.init_hook = lambda module: module  # it would ask for a GPU
    add_hook_to_module(module, hook)


def test_learned_positions_may_be_on_another_gpu():
    """Layers are left out, since attention asks for a GPU; accelerate moves what goes into them."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = LPAForCausalLM(small_config(decoder_type="paper")).model
        model.layers = nn.ModuleList()
        place(model.embed_tokens, "cuda:0")
        place(model.embed_positions, "cuda:1")
        tokens = torch.zeros(2, 8, dtype=torch.long, device="cuda:0")
        mask = torch.zeros(2, 1, 8, 8, device="cuda:0")  # building one would ask for a GPU
        output = model(tokens, attention_mask=mask, use_cache=False)
        assert output.last_hidden_state.device == torch.device("cuda:0")


@pytest.mark.parametrize("logits_are_given", [True, False])
def test_the_head_may_be_on_another_gpu_than_the_last_layer(logits_are_given):
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = LPAForCausalLM(small_config())
        place(model.lm_head, "cuda:0")
        hidden_states = torch.zeros(2, 8, 32, device="cuda:1")
        targets = torch.zeros(2, 8, dtype=torch.long, device="cuda:1")
        logits = model.lm_head(hidden_states) if logits_are_given else None
        loss = model._compute_loss(hidden_states, logits, targets, 16)
        assert loss.shape == ()
