"""Tokens per second and peak memory of the variants of a study, trained in turns.

    .venv/bin/python benchmarks/train/study_cost.py runs/contest/pico-length-2 [--steps 60] [--rounds 3]

Each variant trains from its recipe in a process of its own, with no other process beside it. Printed are
medians over the rounds: of the speed over the second half of the steps, when the layers are compiled, and
of the peak of the process's memory, interpreter and compiler included.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.machine import describe_machine

from lpa.storage.run_directory import CONFIG_FILE
from lpa.study.results.study_results import find_studies
from lpa.train.logging.metrics_file import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, metavar="DIR")
    parser.add_argument("--data", type=Path, required=True, help="what `lpa prepare` wrote")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    (result,) = find_studies([options.study])
    recipes = {
        run.variant: options.study / "runs" / run.run / CONFIG_FILE
        for run in reversed(result.index.runs)
    }
    found: dict[str, list[tuple[float, float]]] = {row.variant: [] for row in result.rows}
    for _ in range(options.rounds):
        for variant in found:
            found[variant].append(train(recipes[variant], options.data, options.steps))
    print(describe_machine())
    print(f"{options.steps} steps, median of {options.rounds} rounds; ratios are to the first row")
    speeds, peaks = (
        {
            variant: median(figures[column] for figures in rounds)
            for variant, rounds in found.items()
        }
        for column in (0, 1)
    )
    base = next(iter(found))
    for variant in found:
        print(
            f"{variant:<16}{speeds[variant]:8,.0f} tokens/s {speeds[variant] / speeds[base]:6.3f}"
            f"{peaks[variant] / 2**20:8,.0f} MiB {peaks[variant] / peaks[base]:6.3f}"
        )


def train(recipe: Path, data: Path, steps: int) -> tuple[float, float]:
    """Tokens per second and peak bytes of the first steps of a run."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "lpa", "train", str(recipe), "--out", str(run)]
        settings = [f"--data.path={data}", f"--train.stop_at={steps}", "--json"]
        subprocess.run([*command, *settings], stdout=subprocess.DEVNULL, check=True)
        records = [record for record in read_metrics(run) if "tokens_per_second" in record]
    late = [record["tokens_per_second"] for record in records if record["step"] > steps / 2]
    return median(late), records[-1]["peak_memory_bytes"]


if __name__ == "__main__":
    main()
