"""As ranks of one world: what a step and an evaluation of each layout read and send.

host_syncs.py DATA LAYOUTS FIELDS OUT    (LAYOUTS and FIELDS are JSON)
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers.device_traffic import DeviceTraffic
from helpers.small_runs import small_trainer

from lpa.train.distributed.process_group import destroy_process_group, init_process_group


def main() -> None:
    data, layouts, fields, out = sys.argv[1:]
    torch.set_num_threads(1)
    world = init_process_group("cpu", timeout=60, long_timeout=60)
    results = []
    for replicate, shard, tensor in json.loads(layouts):
        fields_ = json.loads(fields)
        parallel = {"replicate": replicate, "shard": shard, "tensor": tensor}
        parallel |= fields_.pop("parallel", {})
        trainer = small_trainer(Path(data), world, parallel=parallel, **fields_)
        losses = [trainer.train_step().loss]
        with DeviceTraffic() as step:
            losses.append(trainer.train_step().loss)
        with DeviceTraffic() as evaluation:
            trainer.evaluate(500)
        results.append(
            {
                "losses": losses,
                "step": [step.reads, step.collectives, step.received],
                "evaluation": [evaluation.reads, evaluation.collectives],
            }
        )
    if world.is_main:
        Path(out).write_text(json.dumps(results))
    destroy_process_group()


main()
