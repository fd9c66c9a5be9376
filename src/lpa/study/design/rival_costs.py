"""What each rival of low-rank attention costs at a scale, before any of them exists."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lpa.errors import UserError
from lpa.model import LPAForCausalLM
from lpa.model.plan import kv_cache_bytes
from lpa.study.design.grid import expand_grid
from lpa.study.design.grid_files import SCALES, read_grid, scale_vocab_size
from lpa.train.optim.optimizers import optimizer_state_count

_STATE_BYTES = 4  # optimizer states are float32


@dataclass
class RivalCost:
    """One rival; the keys of `lpa plan --rivals --json`.

    Attributes:
        variant: its name in the study `rivals`.
        parameters: of the model.
        training_flops_per_token: forward and backward.
        optimizer_bytes: of all states, unsharded; of ReLoRA in its first period, when they are most.
        kv_cache_bytes_per_token: of all layers, in the given number format; of latents where they serve.
        source: the paper; empty for what needs none.
    """

    variant: str
    parameters: int
    training_flops_per_token: int
    optimizer_bytes: int
    kv_cache_bytes_per_token: int
    source: str


def rival_costs(
    scale: str, *, vocab_size: int | None = None, dtype: torch.dtype = torch.bfloat16
) -> list[RivalCost]:
    """Each variant of the study `rivals`, with the settings that it has at a scale.

    Args:
        scale: one of the scales of `lpa study`.
        vocab_size: by default what the scale is meant for.
        dtype: of the cache.

    Raises:
        UserError: no such scale.
    """
    if scale not in SCALES:
        raise UserError(f"--rivals: got model {scale!r}; expected one of {', '.join(SCALES)}")
    vocab_size = vocab_size or scale_vocab_size(scale)
    study = expand_grid("rivals", scale, vocab_size=vocab_size)
    sources = read_grid("rivals")["sources"]
    costs = []
    for variant in study.variants:
        config = study.config(variant, seed=0, data=Path("data"))
        model = config.model.build(vocab_size=vocab_size, seq_len=config.data.seq_len)
        with torch.device("meta"):
            states = optimizer_state_count(LPAForCausalLM(model), config.optim)
        costs.append(
            RivalCost(
                variant=variant.name,
                parameters=variant.parameters,
                training_flops_per_token=variant.train_flops_per_token,
                optimizer_bytes=states * _STATE_BYTES,
                kv_cache_bytes_per_token=kv_cache_bytes(model, dtype.itemsize)["latent"],
                source=sources.get(variant.name, ""),
            )
        )
    return costs
