"""As ranks of one world: what becomes of training data of which the last rank has another copy.

data_copies.py DATA FOLDER OUT    (FOLDER holds the copies; OUT gets, by name, what each rank found)
"""

import json
import sys
from pathlib import Path

from lpa.errors import UserError
from lpa.train.batches import TrainingData
from lpa.train.config import DataConfig
from lpa.train.distributed.process_group import (
    OtherRankFailedError,
    all_gather_objects,
    destroy_process_group,
    init_process_group,
)


def main() -> None:
    data, folder, out = map(Path, sys.argv[1:])
    world = init_process_group("cpu", timeout=60, long_timeout=60)
    found = {}
    for copy in sorted(folder.iterdir()):
        is_last = world.rank == world.size - 1
        config = DataConfig(copy if is_last else data, seq_len=32, verify=True)
        try:
            TrainingData(config, 0, world)
            outcome = "accepted"
        except UserError as error:
            outcome = str(error)
        except OtherRankFailedError:
            outcome = "reported by another"
        found[copy.name] = all_gather_objects(outcome)
    if world.is_main:
        out.write_text(json.dumps(found))
    destroy_process_group()


main()
