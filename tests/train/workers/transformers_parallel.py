"""As ranks of one world: models that transformers splits over them, beside the same models whole.

transformers_parallel.py DIRECTORY OUT    (DIRECTORY/KIND/NAME holds a model; KIND is tp or pp)

OUT gets NAME -> how far logits, loss and gradients are from those of the whole model, and whether tokens are
generated alike.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from transformers import DistributedConfig

import lpa

warnings.simplefilter("ignore")
TOKENS = torch.randint(1, 96, (2, 12), generator=torch.Generator().manual_seed(0))
LENGTHS = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def tensor_parallel(directory: Path) -> dict:
    full = lpa.LPAForCausalLM.from_pretrained(directory)
    split = lpa.LPAForCausalLM.from_pretrained(directory, tp_plan="auto")
    result: dict = {}
    for mode in (True, False):  # the second time with gradients, which other paths compute
        with torch.inference_mode(mode):
            ours, theirs = (model(TOKENS, labels=TOKENS) for model in (split, full))
        result[f"logits, {mode}"] = far(ours.logits, theirs.logits)
        result[f"loss, {mode}"] = far(ours.loss, theirs.loss)
    for output in (ours, theirs):
        output.loss.backward()
    # All as one, since a bias of keys has no gradient but rounding.
    names = [name for name, _ in full.named_parameters()]
    result["gradients"] = far(
        *(
            torch.cat([whole(model.get_parameter(name).grad).flatten() for name in names])
            for model in (split, full)
        )
    )
    for cache in ("dynamic", "latent"):
        ours, theirs = (
            model.generate(TOKENS, cache_implementation=cache, **LENGTHS) for model in (split, full)
        )
        result[f"generated, {cache}"] = float((ours != theirs).sum())
    result["split"] = sorted(
        name
        for name, p in split.named_parameters()
        if isinstance(p, DTensor) and "layers.1" in name
    )
    return result


def pipeline_parallel(directory: Path) -> dict:
    full = lpa.LPAForCausalLM.from_pretrained(directory)
    split = lpa.LPAForCausalLM.from_pretrained(
        directory, distributed_config=DistributedConfig(pp_size=2)
    )
    with torch.inference_mode():
        ours, theirs = (model(TOKENS).logits for model in (split, full))
    return {"logits": far(ours, theirs)}


def main() -> None:
    directory, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    results = {}
    for kind, compare in (("tp", tensor_parallel), ("pp", pipeline_parallel)):
        for model in sorted((directory / kind).iterdir()):
            results[f"{kind}/{model.name}"] = compare(model)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


main()
