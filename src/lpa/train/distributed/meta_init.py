"""Weights for a model that was built without any: one module at a time, each process its own shards."""

import torch
from torch import nn

from lpa.lowrank import LowRankLinear, SLTrainLinear
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.train.distributed.dtensor import shard_like


def build_meta_model(config: LPAConfig) -> LPAForCausalLM:
    """The model with shapes and no memory."""
    with torch.device("meta"):
        return LPAForCausalLM(config)


@torch.no_grad()
def materialize(
    model: LPAForCausalLM, config: LPAConfig, device: torch.device, *, seed: int
) -> None:
    """Give a model on the meta device, sharded or not, the weights that `seed` stands for.

    They are those of `torch.manual_seed(seed); LPAForCausalLM(config)`, bit for bit, however many
    processes share the model and on whatever device: every process draws every module's weights on
    the CPU, one module at a time, and keeps its shards.
    """
    model.to_empty(device=device)
    model.tie_weights()
    targets = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    torch.manual_seed(seed)
    modules = _weight_modules(build_meta_model(config))
    decoder = [named_module for named_module in modules if named_module[0].startswith("model.")]
    head = [named_module for named_module in modules if not named_module[0].startswith("model.")]
    for part in (decoder, head):  # each is constructed and initialized before the next
        for _, owner in part:
            _replay_constructor(owner)
        for name, owner in part:
            owner.to_empty(device="cpu").apply(model._init_weights)
            for local_name, value in (*owner.named_parameters(), *owner.named_buffers()):
                target = targets.get(f"{name}.{local_name}")
                if target is not None:  # a tied head has its weights under the embedding's name
                    target.copy_(shard_like(value.to(device), target))
            owner.to("meta")


@torch.no_grad()
def init_buffers(model: LPAForCausalLM, config: LPAConfig, device: torch.device) -> None:
    """Fill what is computed from the configuration and stored in no file, such as RoPE's frequencies."""
    buffers = dict(model.named_buffers())
    for name, owner in _weight_modules(build_meta_model(config)):
        if not any(True for _ in owner.buffers()):
            continue
        owner.to_empty(device="cpu").apply(model._init_weights)
        for local_name, value in owner.named_buffers():
            buffers[f"{name}.{local_name}"].copy_(value.to(device))


def _replay_constructor(owner: nn.Module) -> None:
    """Draw the numbers that torch's constructors draw, which the model then overwrites with its own."""
    owner.to_empty(device="cpu")
    for module in owner.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()
    if isinstance(owner, SLTrainLinear):
        owner.reset_values()
    owner.to("meta")


def _weight_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that hold weights or buffers, a low-rank pair being one, in the order of construction."""
    owners: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        inside = owners and name.startswith(f"{owners[-1][0]}.")
        holds = any(True for _ in module.parameters(recurse=False)) or any(
            True for _ in module.buffers(recurse=False)
        )
        if (holds or isinstance(module, LowRankLinear)) and not inside:
            owners.append((name, module))
    return owners
