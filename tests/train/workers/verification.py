"""As ranks of one world: which shards each process verifies at the start of a run.

verification.py DATA... OUT    (several directories are copies, each of as many ranks in a row)
"""

import json
import sys
from pathlib import Path

from lpa.data.dataset import verify_shard
from lpa.train import batches
from lpa.train.config import DataConfig
from lpa.train.distributed.process_group import (
    all_gather_objects,
    destroy_process_group,
    init_process_group,
)


def main() -> None:
    *copies, out = sys.argv[1:]
    world = init_process_group("cpu", timeout=60, long_timeout=60)
    data = copies[world.rank * len(copies) // world.size]
    names = []

    def record(path, manifest, shard):
        names.append(shard.name)
        verify_shard(path, manifest, shard)

    batches.verify_shard = record
    config = DataConfig(Path(data), seq_len=32, verify=True)
    batches.TrainingData(config, 0, world)
    first = all_gather_objects(list(names))
    names.clear()
    batches.TrainingData(config, 0, world)
    again = all_gather_objects(names)
    if world.is_main:
        Path(out).write_text(json.dumps([first, again]))
    destroy_process_group()


main()
