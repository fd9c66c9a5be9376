"""Training steps of a model as the benchmark takes them: forward, backward, clipping, AdamW."""

from collections.abc import Callable

import torch
from torch import nn

from lpa.model.compile import compile_layers
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.modeling_lpa import LPAForCausalLM


def random_tokens(
    config: LPAConfig, batch_size: int, seq_len: int, device: torch.device
) -> torch.Tensor:
    """A batch of tokens, the same each time: (batch_size, seq_len)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (batch_size, seq_len), generator=generator).to(device)


def take_first_steps(
    config: LPAConfig, tokens: torch.Tensor, dtype: torch.dtype, compiled: bool
) -> tuple[LPAForCausalLM, Callable[[], None]]:
    """A model that has made two steps, and what makes a further one.

    Args:
        tokens: (batch, sequence), on the device of the model.
        dtype: of the arithmetic; weights and optimizer states are float32.
        compiled: whether its layers are.
    """
    torch.manual_seed(0)
    model = LPAForCausalLM(config).to(tokens.device).train()
    if compiled:
        compile_layers(model, tokens.device)
    step = _training_step(model, tokens, dtype)
    for _ in range(2):
        step()
    synchronize(tokens.device)
    return model, step


def _training_step(
    model: LPAForCausalLM, tokens: torch.Tensor, dtype: torch.dtype
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with autocast(tokens.device, dtype):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False, return_logits=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which products are of a type."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
