"""One run of a study in its own process: `python -m lpa.study.execution.run_worker RECIPE RUN LOCK`.

It trains, or resumes training, and scores the run on held-out text; what is there already is kept. It waits
for another process that holds the lock of the run, and holds it until it ends.
"""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import filelock

from lpa.display import console
from lpa.display.logs import log_to_stderr
from lpa.errors import UserError
from lpa.eval.perplexity import evaluate_perplexity
from lpa.storage.files import write_text_atomic
from lpa.storage.run_directory import CONFIG_FILE, RESULT_FILE, TEST_FILE
from lpa.train.checkpoint import store
from lpa.train.config import RunConfig
from lpa.train.result import RunInterruptedError
from lpa.train.run import train


def main() -> None:
    recipe, run, lock = map(Path, sys.argv[1:])
    console.silence_transformers()
    log_to_stderr("info")
    try:
        config = RunConfig.load(recipe)
        with filelock.FileLock(lock):
            train_and_score(config, run)
    except UserError as error:
        print(f"lpa: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RunInterruptedError as stop:
        print(f"lpa: stopped by {stop}", file=sys.stderr)
        raise SystemExit(128 + stop.signal_number) from None


def train_and_score(config: RunConfig, run: Path) -> None:
    """Do what the run still lacks.

    Raises:
        UserError: a setting that is not accepted.
        RunInterruptedError: a signal stopped the training; its checkpoint is written.
    """
    if not (run / RESULT_FILE).exists():
        resume = (run / CONFIG_FILE).exists() and bool(store.resumable_checkpoints(run))
        # Nothing to go on from, perhaps not even a configuration where a kill came that early. Whoever
        # works on the run holds its lock, so nobody writes what is removed.
        if not resume and run.exists():
            shutil.rmtree(run)
        train(config, run, resume=resume)
    if not (run / TEST_FILE).exists():
        device, threads = config.train.device, config.train.threads
        test = evaluate_perplexity(run, config.data.path, device=device, threads=threads)
        write_text_atomic(run / TEST_FILE, json.dumps(asdict(test), indent=2) + "\n")


if __name__ == "__main__":
    main()
