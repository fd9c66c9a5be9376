"""As ranks of one world: one process fails alone, in a step, as the model is made, or for want of the data.

failing_rank.py DATA RUN WHERE OUT    (WHERE: step, model, data or tokenizer)
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers.small_runs import small_config

from lpa.train import init_weights
from lpa.train.run import train
from lpa.train.trainer import Trainer

BAD_RANK = 1


def fail(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory, says this test")


def main() -> None:
    data, run, where, out = sys.argv[1:]
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    if rank == BAD_RANK:
        if where == "step":
            Trainer.forward_backward = fail
        elif where == "model":
            init_weights.materialize = fail
        elif where == "tokenizer":
            data = shutil.copytree(data, f"{data}-without-tokenizer")
            shutil.rmtree(Path(data) / "tokenizer")
        else:
            data = f"{data}-that-is-not-here"
    config = small_config(Path(data), steps=4, parallel={"timeout": 30, "long_timeout": 120})
    start = time.monotonic()
    try:
        train(config, Path(run))
        found = ["finished", ""]
    except Exception as error:
        found = [type(error).__name__, str(error)]
    seconds = time.monotonic() - start
    Path(f"{out}.{rank}").write_text(json.dumps([*found, seconds]))
    Path(out).write_text("null")


main()
