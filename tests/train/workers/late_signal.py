"""As ranks of one world, or alone: a run of which one process gets SIGTERM when nothing is left to stop.

late_signal.py DATA RUN OUT    (with ranks, each notes what reached it in OUT.RANK; alone, it dies)
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers.small_runs import small_trainer

from lpa.train.distributed.process_group import destroy_process_group, init_process_group


def main() -> None:
    data, run, out = sys.argv[1:]
    torch.set_num_threads(1)
    world = init_process_group("cpu", timeout=60, long_timeout=60)
    received: list[int] = []
    if world.size > 1:
        signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    trainer = small_trainer(Path(data), world, out=Path(run), steps=2)
    export = trainer.export

    def signalled(*arguments: Any) -> None:
        if world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        export(*arguments)

    trainer.export = signalled
    trainer.run()
    finished = (Path(run) / "result.json").exists()
    Path(f"{out}.{world.rank}").write_text(json.dumps({"received": received, "finished": finished}))
    destroy_process_group()
    Path(out).write_text("null")


main()
