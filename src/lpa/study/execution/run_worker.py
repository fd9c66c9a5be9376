"""One run of a study in its own process: `python -m lpa.study.execution.run_worker RECIPE RUN LOCK`.

It trains, or resumes training, and scores the run on held-out text; what is there already is kept. It waits
for another process that holds the lock of the run, and holds it until it ends.
"""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from lpa.display import console
from lpa.display.logs import log_to_stderr
from lpa.errors import UserError
from lpa.eval.perplexity import evaluate_perplexity
from lpa.storage.files import write_json
from lpa.storage.locks import acquire_lock
from lpa.storage.run_directory import (
    BEST_DIRECTORY,
    CHECKPOINTS_DIRECTORY,
    CONFIG_FILE,
    FINAL_DIRECTORY,
    RESULT_FILE,
    SCORES_DIRECTORY,
    TEST_FILE,
)
from lpa.train.checkpoint import store
from lpa.train.config import RunConfig
from lpa.train.result import RunInterruptedError
from lpa.train.run import train

# What a run leaves that may be all there is of it.
_WORTH_KEEPING = (
    f"{CHECKPOINTS_DIRECTORY}/step-*",
    BEST_DIRECTORY,
    FINAL_DIRECTORY,
    TEST_FILE,
    SCORES_DIRECTORY,
)


def main() -> None:
    recipe, run, lock = map(Path, sys.argv[1:])
    console.silence_transformers()
    log_to_stderr("info")
    try:
        config = RunConfig.load(recipe)
        held = acquire_lock(lock)
        try:
            train_and_score(config, run)
        finally:
            held.release()
    except UserError as error:
        print(f"lpa: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RunInterruptedError as stop:
        print(f"lpa: stopped by {stop}", file=sys.stderr)
        raise SystemExit(128 + stop.signal_number) from None


def train_and_score(config: RunConfig, run: Path) -> None:
    """Do what the run still lacks.

    Raises:
        UserError: a setting that is not accepted, or a run that cannot resume and would lose something if it
            began again.
        RunInterruptedError: a signal stopped the training; its checkpoint is written.
    """
    if not (run / RESULT_FILE).exists():
        resume = (run / CONFIG_FILE).exists() and bool(store.resumable_checkpoints(run))
        # Nothing to go on from, perhaps not even a configuration where a kill came that early. Whoever
        # works on the run holds its lock, so nobody writes what is removed.
        if not resume and run.exists():
            _check_nothing_is_lost(run)
            shutil.rmtree(run)
        train(config, run, resume=resume)
    if not (run / TEST_FILE).exists():
        device, threads = config.train.device, config.train.threads
        test = evaluate_perplexity(run, config.data.path, device=device, threads=threads)
        write_json(run / TEST_FILE, asdict(test))


def _check_nothing_is_lost(run: Path) -> None:
    kept = [path.relative_to(run) for pattern in _WORTH_KEEPING for path in run.glob(pattern)]
    if kept:
        raise UserError(
            f"{run}: holds {kept[0]}, but nothing that the run could resume from; move it away and start the "
            "study again to train the run from its beginning"
        )


if __name__ == "__main__":
    main()
