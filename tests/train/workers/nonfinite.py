"""As ranks of one world: a run in which one process gets a loss, or a gradient, that is no number.

nonfinite.py DATA RUN WHAT ACTION OUT    (WHAT: loss or gradient; ACTION: stop or skip)
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers.small_runs import small_trainer

from lpa.errors import UserError
from lpa.train.distributed.process_group import (
    OtherRankFailedError,
    destroy_process_group,
    init_process_group,
)

BAD_STEP, BAD_RANK = 4, 1


def main() -> None:
    data, run, what, action, out = sys.argv[1:]
    torch.set_num_threads(1)
    world = init_process_group("cpu", timeout=60, long_timeout=60)
    trainer = small_trainer(
        Path(data),
        world,
        out=Path(run),
        steps=8,
        log_every=1,
        micro_batch_size=2,
        on_nonfinite=action,
        checkpoint={"every": 1, "keep_latest_k": 9},
    )
    forward = trainer.model.forward

    def spoiled(*arguments, **keywords):
        output = forward(*arguments, **keywords)
        if trainer.state.step + 1 == BAD_STEP and world.rank == BAD_RANK:
            if what == "loss":
                output.loss = output.loss * float("nan")
            else:
                output.loss.register_hook(lambda gradient: gradient * float("inf"))
        return output

    trainer.model.forward = spoiled
    ending = "finished"
    try:
        trainer.run()
    except UserError as error:
        ending = str(error)
    except OtherRankFailedError:
        ending = "reported by another"
    is_finite = all(
        bool(torch.isfinite(value.to_local()).all())
        for value in (
            *trainer.model.parameters(),
            *(
                state
                for member in trainer.optimizers.members
                for of_one in member.state.values()
                for state in of_one.values()
                if hasattr(state, "to_local")
            ),
        )
    )
    Path(f"{out}.{world.rank}").write_text(
        json.dumps({"ending": ending, "step": trainer.state.step, "finite": is_finite})
    )
    destroy_process_group()
    Path(out).write_text("null")


main()
