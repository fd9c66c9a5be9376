"""A process of a sharded model, for tests; started by torchrun.

    torchrun --nproc-per-node N tests/helpers/sharded_models.py OUT REPLICATE,SHARD,TENSOR …

For each layout: the models of `starts_in` are materialized and all `TRAININGS` run; rank 0 leaves the
whole weights in `OUT/<layout>/<name>.safetensors`, each rank its own numbers in
`OUT/<layout>/rank-<n>.json`.
"""

import ctypes
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel

from lpa.lowrank import INITIALIZATIONS
from lpa.model import LPAConfig, LPAForCausalLM
from lpa.model.configuration_lpa import PLACEMENTS
from lpa.train.config import OptimConfig
from lpa.train.distributed.dtensor import full_tensor
from lpa.train.distributed.meta_init import build_meta_model, materialize
from lpa.train.distributed.parallelize import ParallelLayout, parallelize
from lpa.train.optim.optimizers import build_optimizers

SEED = 7
CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "rank": 8,
}

# What differs between models in the way they start: decoder, placement, initialization, tied or not.
STARTS = {
    "-".join((decoder_type, placement, initialization, "tied" if tied else "untied")): {
        "decoder_type": decoder_type,
        "placement": placement,
        "initialization": initialization,
        "residual_scaling": tied,
        "tie_word_embeddings": tied,
        "lm_head_bias": not tied,
    }
    for decoder_type in ("llama", "paper")
    for placement in PLACEMENTS
    for initialization in INITIALIZATIONS
    for tied in (False, True)
}

# Of those, every initialization of every projection is tried where matrices are split both ways, with the
# decoders in turns.
SHARDED_STARTS = [
    f"{('llama', 'paper')[number % 2]}-all-{initialization}-{('tied', 'untied')[number % 2]}"
    for number, initialization in enumerate(INITIALIZATIONS)
] + ["llama-none-scaled-untied", "paper-attention-scaled-tied"]


def starts_in(layout: str) -> list[str]:
    """The models that are materialized in a layout: elsewhere some of each decoder."""
    return SHARDED_STARTS if layout == "1,2,2" else SHARDED_STARTS[::3]


# The epsilon is the paper's: with a smaller one AdamW divides rounding by rounding where a gradient is
# almost zero, and runs that sum in another order part.
TRAININGS = {
    "adamw": OptimConfig(lr=2e-2, eps=1e-5, down_lr_scale=2.0, up_weight_decay=0.3),
    "muon": OptimConfig(name="muon", lr=2e-2, eps=1e-5),
    "product": OptimConfig(lr=2e-2, eps=1e-5, low_rank_decay="product", weight_decay=0.5),
}
# 97 MB of weights in modules of 3 MB at most.
LARGE = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "placement": "attention",
    "rank": 128,
}

TRAINED = {"placement": "all", "tie_word_embeddings": True}
STEPS = 6
SAMPLES = 8


def config_of(**fields: object) -> LPAConfig:
    return LPAConfig(**(SIZES | fields))


def sharded(config: LPAConfig, layout: ParallelLayout) -> LPAForCausalLM:
    model = build_meta_model(config)
    parallelize(model, layout, "cpu", torch.float32)
    materialize(model, config, CPU, seed=SEED)
    return model


def train(
    layout: ParallelLayout, optim: OptimConfig, rank: int
) -> tuple[LPAForCausalLM, list[float]]:
    """A model after six steps on the same samples in every layout, and what its losses were."""
    model = sharded(config_of(**TRAINED), layout).train()
    optimizers = build_optimizers(model, optim, torch.float32)
    share = SAMPLES // layout.data_parallel_size
    first = layout.dp_rank(rank) * share
    starts = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(STEPS):
        # Each token is the one before plus one, which is soon learned.
        begin = torch.randint(SIZES["vocab_size"], (SAMPLES, 1), generator=starts)
        ids = (begin + torch.arange(17)) % SIZES["vocab_size"]
        own = ids[first : first + share]
        with loss_parallel() if layout.tensor > 1 else nullcontext():
            loss = model(
                input_ids=own[:, :-1],
                shift_labels=own[:, 1:],
                num_items_in_batch=SAMPLES * 16,
                use_cache=False,
                return_logits=False,
            ).loss
            loss.backward()
        optimizers.step()
        optimizers.zero_grad()
        losses.append(loss.item())
    return model, losses


def gathered(model: LPAForCausalLM) -> dict[str, Tensor]:
    """Weights and buffers, whole."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: full_tensor(tensor.detach()).contiguous() for name, tensor in tensors.items()}


def return_freed_memory() -> None:
    """Larger blocks that are freed go back to the system at once, from now on."""
    m_mmap_threshold = -3
    ctypes.CDLL(None).mallopt(m_mmap_threshold, 65536)


def memory_of_making(layout: ParallelLayout) -> dict[str, int]:
    """What this process holds of a larger model, and by how much it grew at most while that was made.

    Needs `return_freed_memory`.
    """
    config = config_of(**LARGE)
    model = build_meta_model(config)
    parallelize(model, layout, "cpu", torch.float32)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is that of now
    before = _status("VmRSS")
    materialize(model, config, CPU, seed=SEED)
    return {
        "grown": _status("VmHWM") - before,
        "held": sum(_local(p).nbytes for p in model.parameters()),
        "whole": sum(p.nbytes for p in model.parameters()),
    }


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def main() -> None:
    return_freed_memory()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for text in sys.argv[2:]:
        layout = ParallelLayout(*map(int, text.split(",")))
        out = Path(sys.argv[1]) / text
        out.mkdir(parents=True, exist_ok=True)

        def leave(name: str, model: LPAForCausalLM, out: Path = out) -> None:
            weights = gathered(model)
            if rank == 0:
                save_file(weights, out / f"{name}.safetensors")

        for name in starts_in(text):
            leave(f"start-{name}", sharded(config_of(**STARTS[name]), layout))
        losses = {}
        for name, optim in TRAININGS.items():
            model, losses[name] = train(layout, optim, rank)
            leave(f"trained-{name}", model)
        report = {"losses": losses, "memory": memory_of_making(layout)}
        (out / f"rank-{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
