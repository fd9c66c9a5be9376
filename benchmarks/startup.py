"""How long the package, the command line and a model of 130M parameters take to be there.

    .venv/bin/python benchmarks/startup.py [--rounds 9]

Processes are timed from outside, the interpreter's own start included. Models are made with their weights
drawn, and loaded from a directory.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common.machine import describe_machine
from common.models import MODELS, NAMES
from transformers import AutoModelForCausalLM

import lpa  # noqa: F401, registers the model type
from lpa.study.bench.timing import time_interleaved


def process(*arguments: str) -> Callable[[], None]:
    def run() -> None:
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)

    return run


def show(seconds: dict[str, list[float]]) -> None:
    for name, values in seconds.items():
        print(f"{name:<48}{statistics.median(values):7.3f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(describe_machine())
    processes = {
        "python": process("-c", "pass"),
        "python, import lpa": process("-c", "import lpa"),
        "lpa --help": process("-m", "lpa", "--help"),
    }
    show(time_interleaved(processes, rounds=options.rounds))
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Callable[[], object]] = {}
        for name in ("b", "lpa"):
            runs[f"{NAMES[name]}, drawn"] = MODELS[name]
        for name in ("a", "c", "lpa"):
            directory = Path(folder, name)
            MODELS[name]().save_pretrained(directory)
            runs[f"{NAMES[name]}, loaded"] = lambda d=directory: (
                AutoModelForCausalLM.from_pretrained(d)
            )
        show(time_interleaved(runs, rounds=3))


if __name__ == "__main__":
    main()
