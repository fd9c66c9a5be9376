"""As ranks of one world: a run that resumes while rank 1 does not yet see all that is in its directory.

resume_views.py DATA RUN VIEW OUT    (VIEW: whole; or late, without the newest checkpoint and the result)

Writes for each rank which step it loaded, None where it loaded none, and how `train` ended.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers.small_runs import small_config

from lpa.errors import UserError
from lpa.train import run as run_module
from lpa.train.checkpoint import store
from lpa.train.distributed.process_group import OtherRankFailedError
from lpa.train.result import RunResult, RunStopped
from lpa.train.trainer import Trainer


def main() -> None:
    data, run, view, out = sys.argv[1:]
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    if view == "late" and rank == 1:
        list_all = store.list_checkpoints
        store.list_checkpoints = lambda run: list_all(run)[:-1]
        run_module._finished_result = lambda *_: None
    loaded = []

    def stop(trainer: Trainer) -> RunStopped:
        loaded.append(trainer.state.step)
        return RunStopped(trainer.state.step, "it has loaded")

    Trainer.run = stop
    config = small_config(Path(data), steps=6, loggers=[], checkpoint={"every": 2})
    with warnings.catch_warnings(record=True) as caught:
        try:
            result = run_module.train(config, run, resume=True)
            ending = "finished" if isinstance(result, RunResult) else "stopped"
        except UserError as error:
            ending = str(error)
        except OtherRankFailedError:
            ending = "reported by another"
    said = [str(warning.message) for warning in caught if "resuming from" in str(warning.message)]
    found = {"loaded": loaded, "ending": ending, "warnings": said}
    Path(f"{out}.{rank}").write_text(json.dumps(found))
    Path(out).write_text("null")


main()
