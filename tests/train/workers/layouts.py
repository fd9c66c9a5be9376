"""As ranks of one world: train a small model in each layout asked for, and write the result of each.

layouts.py DATA LAYOUTS STEPS FIELDS OUT    (LAYOUTS and FIELDS are JSON)
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers.small_runs import small_trainer

from lpa.train.distributed.process_group import destroy_process_group, init_process_group


def main() -> None:
    data, layouts, steps, fields, out = sys.argv[1:]
    torch.set_num_threads(1)
    world = init_process_group("cpu", timeout=60, long_timeout=60)
    results = []
    for replicate, shard, tensor in json.loads(layouts):
        trainer = small_trainer(
            Path(data),
            world,
            parallel={"replicate": replicate, "shard": shard, "tensor": tensor},
            steps=int(steps),
            **json.loads(fields),
        )
        losses = [trainer.train_step().loss for _ in range(int(steps))]
        if trainer.config.train.sample_every:
            trainer.out = Path(out).parent
            trainer.sample()
        weights = {
            name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().double()
            for name, p in trainer.model.named_parameters()
        }
        norms = {name: weight.norm().item() for name, weight in weights.items()}
        held = sum(
            (p.to_local() if hasattr(p, "to_local") else p).numel()
            for p in trainer.model.parameters()
        )
        results.append(
            {
                "losses": losses,
                "norms": norms,
                "held": held,
                "tokens": trainer.state.tokens,
                "evaluated": trainer.evaluate(500).loss,
            }
        )
    if world.is_main:
        Path(out).write_text(json.dumps(results))
    destroy_process_group()


main()
