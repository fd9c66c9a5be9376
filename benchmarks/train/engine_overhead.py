"""What the training engine adds to the arithmetic: 1 - (forward + backward + optimizer) / wall time.

    .venv/bin/python benchmarks/train/engine_overhead.py [STEPS] [--asynchronous]

A real run of the 130M shape of setting 2 (LPA, rank 128, vocabulary 32,000, four samples of 256 tokens
per step) on the bundled speeches: data, metrics, agreement between processes and a checkpoint every 50
steps, checksums included. By default 100 steps; several minutes. The last checkpoint is waited for.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.machine import describe_machine

from lpa.data import bundled_corpus, prepare
from lpa.train.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from lpa.train.logging.metrics_file import read_metrics
from lpa.train.trainer import Trainer

ARITHMETIC = ("forward_backward_seconds", "optimizer_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", type=int, nargs="?", default=100)
    parser.add_argument("--asynchronous", action="store_true")
    options = parser.parse_args()
    steps, async_save = options.steps, options.asynchronous
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare([bundled_corpus("train")], data, vocab_size=4096)
        config = RunConfig(
            data=DataConfig(data, seq_len=256),
            model=ModelConfig(preset="paper-130m-s2", vocab_size=32000),
            # One step more than is done, so that the run ends with a checkpoint and without an export.
            train=TrainConfig(steps=steps + 1, stop_at=steps, batch_size=4, eval_every=0),
            checkpoint=CheckpointConfig(every=50, async_save=async_save),
        )
        out = Path(folder) / "run"
        trainer = Trainer(config, out)
        out.mkdir()
        began = time.perf_counter()
        trainer.run()
        wall = time.perf_counter() - began
        rest = trainer.timer.pop()
        records = read_metrics(out)
        phases: dict[str, float] = {f"{name}_seconds": value for name, value in rest.items()}
        for record in records:
            for name, value in record.items():
                if name.endswith("_seconds") and name != "train_seconds":
                    phases[name] = phases.get(name, 0.0) + value
        size = sum(f.stat().st_size for f in (out / "checkpoints").rglob("*") if f.is_file())
    arithmetic = sum(phases[name] for name in ARITHMETIC)
    print(describe_machine())
    print(f"{steps} steps in {wall:.1f} s, {'asynchronous' if async_save else 'synchronous'} saves")
    for name, seconds in sorted(phases.items(), key=lambda item: -item[1]):
        print(f"  {name.removesuffix('_seconds'):<18}{seconds:8.2f} s")
    print(f"  checkpoints kept  {size / 2**20:8.0f} MiB")
    print(f"engine overhead {1 - arithmetic / wall:.2%}")


if __name__ == "__main__":
    main()
