"""Weights for a model that was built without any: one module at a time, each process its own shards."""

import torch
from torch import nn

from lpa.lowrank import LowRankLinear
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.train.shards import laid_out_like


def meta_model(config: LPAConfig) -> LPAForCausalLM:
    """The model with shapes and no memory."""
    with torch.device("meta"):
        return LPAForCausalLM(config)


@torch.no_grad()
def materialise(
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
    drafts = _units(meta_model(config))
    decoder = [draft for draft in drafts if draft[0].startswith("model.")]
    head = [draft for draft in drafts if not draft[0].startswith("model.")]
    for part in (decoder, head):  # each is constructed and initialised before the next
        for _, unit in part:
            _draw_as_constructed(unit)
        for name, unit in part:
            unit.to_empty(device="cpu").apply(model._init_weights)
            for own, value in (*unit.named_parameters(), *unit.named_buffers()):
                target = targets.get(f"{name}.{own}")
                if target is not None:  # a tied head has its weights under the embedding's name
                    target.copy_(laid_out_like(value.to(device), target))
            unit.to("meta")


@torch.no_grad()
def compute_buffers(model: LPAForCausalLM, config: LPAConfig, device: torch.device) -> None:
    """Fill what is computed from the configuration and stored in no file, such as RoPE's frequencies."""
    buffers = dict(model.named_buffers())
    for name, unit in _units(meta_model(config)):
        if not any(True for _ in unit.buffers()):
            continue
        unit.to_empty(device="cpu").apply(model._init_weights)
        for own, value in unit.named_buffers():
            buffers[f"{name}.{own}"].copy_(value.to(device))


def _draw_as_constructed(unit: nn.Module) -> None:
    """Draw the numbers that torch's constructors draw, which the model then overwrites with its own."""
    unit.to_empty(device="cpu")
    for module in unit.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()
    unit.to("meta")


def _units(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that hold weights or buffers, a low-rank pair being one, in the order of construction."""
    units: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        inside = units and name.startswith(f"{units[-1][0]}.")
        holds = any(True for _ in module.parameters(recurse=False)) or any(
            True for _ in module.buffers(recurse=False)
        )
        if (holds or isinstance(module, LowRankLinear)) and not inside:
            units.append((name, module))
    return units
