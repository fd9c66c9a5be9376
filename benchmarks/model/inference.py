"""Prefill and decoding of LPA against the merged model and the plain cache, in one run.

    .venv/bin/python benchmarks/model/inference.py [--batch-size 8] [--seq-len 1024] [--rounds 20]
    [--processor-time]

The shape is setting 2's at 130M and setting 1's sizes of the same width, rank 128. A decoding step is one
token of each sequence after a prompt of the context. Bytes are those that the cache holds.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.machine import add_clock_argument, open_clock
from common.models import ours

from lpa.lowrank import LowRankLinear
from lpa.model import LatentCache, LPAForCausalLM, preset_config
from lpa.study.bench.benchmark import decoder
from lpa.study.bench.timing import median_ratio, time_interleaved


def merged(model: nn.Module) -> nn.Module:
    """The same map with each pair folded into one matrix."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(module, name, child.to_dense())
    return model


def setting_1(seq_len: int) -> nn.Module:
    sizes = {"rank": 128, "max_position_embeddings": seq_len}
    return LPAForCausalLM(preset_config("130m-s1", **sizes))


def measure(
    title: str, build: Callable[[], nn.Module], options: argparse.Namespace, clock: Any
) -> None:
    batch_size, seq_len = options.batch_size, options.seq_len
    prompt = torch.randint(32000, (batch_size, seq_len), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    lpa = build().eval()
    torch.manual_seed(0)
    dense = merged(build().eval())
    prefills: dict[str, Callable[[], object]] = {
        "lpa": lambda: lpa(prompt, use_cache=True, logits_to_keep=1),
        "merged": lambda: dense(prompt, use_cache=True, logits_to_keep=1),
    }
    latent = LatentCache(config=lpa.config)
    lpa(prompt, past_key_values=latent, logits_to_keep=1)
    plain, of_merged = (
        model(prompt, use_cache=True, logits_to_keep=1).past_key_values for model in (lpa, dense)
    )
    token = prompt[:, -1:]
    for model, cache in ((lpa, latent), (lpa, plain), (dense, of_merged)):
        assert cache.get_seq_length() == seq_len, model
        cache.crop(-1)
    decodes = {
        "latent": decoder(lpa, latent, token),
        "plain": decoder(lpa, plain, token),
        "merged": decoder(dense, of_merged, token),
    }
    seconds = time_interleaved(decodes, rounds=options.rounds, warm_up=3, clock=clock)
    print(f"\n{title}, rank 128, batch {batch_size}, context {seq_len}")
    if options.prefill_rounds:
        first = time_interleaved(prefills, rounds=options.prefill_rounds, clock=clock)
        for name, values in first.items():
            print(f"prefill  {name:<8}{statistics.median(values):8.3f} s")
        middle, half_iqr = median_ratio(first, "lpa", "merged")
        print(f"prefill time, lpa / merged              {middle:6.3f} ± {half_iqr:.3f}")
    for name, values in seconds.items():
        print(f"decoding {name:<8}{batch_size / statistics.median(values):8.1f} tokens/s")
    for base in ("plain", "merged"):
        middle, half_iqr = median_ratio(seconds, base, "latent")
        print(f"decoding rate, latent / {base:<8}        {middle:6.3f} ± {half_iqr:.3f}")
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in plain.layers)
    print(f"bytes, latent / plain cache             {latent.nbytes() / held:6.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--prefill-rounds", type=int, default=3, help="0: time decoding alone")
    add_clock_argument(parser)
    options = parser.parse_args()
    clock = open_clock(options)
    with torch.inference_mode():
        measure("setting 2", lambda: ours(max_position_embeddings=options.seq_len), options, clock)
        measure("setting 1", lambda: setting_1(options.seq_len), options, clock)


if __name__ == "__main__":
    main()
