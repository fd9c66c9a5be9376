"""How the time of a decoder layer, LPA over dense, moves with rank, width, context and tokens per step.

    .venv/bin/python benchmarks/model/sweep.py [--rounds 7] [--processor-time]

One layer of setting 2, forward and backward, float32; what does not vary is width 768, rank a sixth of the
width, context 256 and 1024 tokens. Each line is a run of two layers in turns.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.machine import add_clock_argument, open_clock

from lpa.lowrank import break_even_rank
from lpa.model import LPAConfig, LPAForCausalLM
from lpa.model.cost import projection_parameter_count
from lpa.study.bench.timing import median_ratio, time_interleaved

CASES: list[dict[str, int]] = [
    *({"rank": rank} for rank in (32, 64, 128, 192, 256, 384)),
    *({"width": width} for width in (256, 512, 1024, 2048)),
    *({"seq_len": seq_len, "tokens": max(1024, seq_len)} for seq_len in (128, 512, 1024, 4096)),
    *({"tokens": tokens} for tokens in (256, 512, 2048, 4096)),
]


def layer(placement: str, width: int, rank: int, seq_len: int) -> Any:
    torch.manual_seed(0)
    return LPAForCausalLM(
        LPAConfig(
            vocab_size=64,
            hidden_size=width,
            intermediate_size=8 * width // 3,
            num_hidden_layers=1,
            num_attention_heads=width // 64,
            max_position_embeddings=seq_len,
            placement=placement,
            rank=rank,
        )
    ).train()


def flops(model: Any, seq_len: int) -> int:
    """Per token, forward: products with weights, and attention over the full square."""
    return 2 * projection_parameter_count(model.config) + 4 * seq_len * model.config.hidden_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    add_clock_argument(parser)
    options = parser.parse_args()
    clock = open_clock(options)
    print(f"{'rank':>6}{'width':>7}{'seq_len':>9}{'tokens':>8}{'time':>9}{'':>8}{'FLOPs':>8}")
    for case in CASES:
        width, seq_len = case.get("width", 768), case.get("seq_len", 256)
        rank, tokens = case.get("rank", width // 6), case.get("tokens", 1024)
        runs, models = {}, {}
        for placement in ("attention", "none"):
            model = models[placement] = layer(placement, width, rank, seq_len)
            x = torch.randn(max(1, tokens // seq_len), min(tokens, seq_len), width)

            def both_ways(model: Any = model, x: torch.Tensor = x) -> None:
                model.model(inputs_embeds=x, use_cache=False).last_hidden_state.sum().backward()
                model.zero_grad(set_to_none=True)

            runs[placement] = both_ways
        seconds = time_interleaved(runs, rounds=options.rounds, clock=clock)
        middle, half_iqr = median_ratio(seconds, "attention", "none")
        flops_ratio = flops(models["attention"], seq_len) / flops(models["none"], seq_len)
        note = "  no saving" if rank >= break_even_rank(width, width) else ""
        print(
            f"{rank:6}{width:7}{seq_len:9}{tokens:8}{middle:9.3f} ± {half_iqr:.3f}{flops_ratio:8.3f}{note}",
            flush=True,
        )


if __name__ == "__main__":
    main()
