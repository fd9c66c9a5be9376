"""The demonstration: the dense Transformer and LPA side by side on the bundled corpus, in minutes."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from lpa import console
from lpa.data.preparation import prepare
from lpa.data.sources import bundled_corpus
from lpa.errors import UserError
from lpa.eval.generation import generate_text
from lpa.eval.perplexity import evaluate_perplexity
from lpa.files import check_output, write_text
from lpa.study.report import write_report
from lpa.train.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from lpa.train.evaluate import Perplexity
from lpa.train.metrics import read_metrics
from lpa.train.result import RunResult

VOCAB_SIZE = 2048
STEPS = 300
PROMPT = "My fellow Americans,"

PLACEMENTS = {"dense": "none", "lpa": "attention"}

# Each the best on the validation speeches of those that scripts/tune_demo tries.
LEARNING_RATES = {"dense": 1e-3, "lpa": 2e-3}


@dataclass
class DemoFigures:
    """What one model came to; the keys of `lpa demo --json`."""

    parameters: int
    train_flops_per_token: int
    tokens_per_second: float
    wall_seconds: float
    peak_memory_bytes: int
    test_perplexity: float
    test_word_perplexity: float
    test_bits_per_byte: float

    @classmethod
    def of(cls, run: RunResult, test: Perplexity) -> "DemoFigures":
        return cls(
            parameters=run.parameters,
            train_flops_per_token=run.train_flops_per_token,
            tokens_per_second=run.tokens_per_second,
            wall_seconds=run.wall_seconds,
            peak_memory_bytes=run.peak_memory_bytes,
            test_perplexity=test.perplexity,
            test_word_perplexity=test.word_perplexity,
            test_bits_per_byte=test.bits_per_byte,
        )


@dataclass
class DemoResult:
    """The figures and a sample of each model, by name."""

    figures: dict[str, DemoFigures]
    samples: dict[str, str]
    report: Path


def demo_config(data: Path, *, steps: int = STEPS, seed: int = 0) -> RunConfig:
    """What both models share: everything but placement and learning rate.

    One CPU thread each: the two train at the same time, so that whatever else the machine does
    slows both alike, and one thread adds up in the same order every time.
    """
    return RunConfig(
        data=DataConfig(path=data, context=256),
        model=ModelConfig(preset="nano"),
        optim=OptimConfig(warmup_steps=min(20, steps // 4)),
        train=TrainConfig(
            steps=steps,
            batch_size=8,
            seed=seed,
            log_every=5,
            eval_every=max(1, steps // 6),
            device="cpu",
            threads=1,
        ),
        checkpoint=CheckpointConfig(every=0),
    )


def run_demo(
    out: Path, *, steps: int = STEPS, seed: int = 0, overwrite: bool = False
) -> DemoResult:
    """Prepare the corpus, train both models, evaluate them on the test speeches, write a report.

    Args:
        out: gets `data/`, the run directories `dense/` and `lpa/`, and `report.html`.
        steps: of training, of 2,048 tokens each.
        seed: of weights, data order and samples.
        overwrite: replace an earlier demonstration in `out`.

    Raises:
        UserError: a bad value, or `out` holds something.
    """
    if steps < 1:
        raise UserError(f"--steps: got {steps}; expected at least 1")
    check_output(out, overwrite=overwrite, marker="recipe.yaml")
    if out.exists():
        shutil.rmtree(out)

    data = prepare_demo(out, steps=steps, seed=seed)
    train_side_by_side(out, LEARNING_RATES, steps=steps)

    results = {name: RunResult.load(out / name) for name in PLACEMENTS}
    with console.progress() as display:
        bar = display.add_task("test speeches and samples", total=len(PLACEMENTS), status="")
        figures, samples = {}, {}
        for name in PLACEMENTS:
            test = evaluate_perplexity(out / name, data, split="test", device="cpu", threads=1)
            figures[name] = DemoFigures.of(results[name], test)
            samples[name] = generate_text(
                out / name, PROMPT, max_new_tokens=80, seed=seed, device="cpu"
            )[0]
            display.advance(bar)

    write_text(
        out / "result.json",
        json.dumps({name: asdict(value) for name, value in figures.items()}, indent=2) + "\n",
    )
    report = out / "report.html"
    write_report(
        report,
        figures={name: asdict(value) for name, value in figures.items()},
        curves={name: read_metrics(out / name) for name in PLACEMENTS},
        samples=samples,
        settings={
            "steps": steps,
            "seed": seed,
            "tokens": results["lpa"].tokens,
            "learning rate": LEARNING_RATES,
        },
    )
    return DemoResult(figures=figures, samples=samples, report=report)


def prepare_demo(out: Path, *, steps: int = STEPS, seed: int = 0) -> Path:
    """Write `data/` and the recipe that both models share; returns the data directory."""
    data = out / "data"
    with console.progress() as display:
        bar = display.add_task("tokenizer and tokens", total=None, status="")
        prepare(
            [bundled_corpus("train")],
            data,
            vocab_size=VOCAB_SIZE,
            validation=[bundled_corpus("validation")],
            test=[bundled_corpus("test")],
        )
        display.update(bar, total=1, completed=1)
    write_text(out / "recipe.yaml", demo_config(data, steps=steps, seed=seed).to_yaml())
    return data


def train_side_by_side(out: Path, learning_rates: dict[str, float], *, steps: int) -> None:
    """Train both models at the same time, each in a process of its own, and show how far they are.

    Raises:
        UserError: one of them failed; the other is stopped.
    """
    processes = {}
    try:
        for name, placement in PLACEMENTS.items():
            command = [sys.executable, "-m", "lpa", "train", str(out / "recipe.yaml")]
            command += ["--model.placement", placement]
            command += ["--optim.lr", str(learning_rates[name]), "--out", str(out / name)]
            processes[name] = subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        with console.progress() as display:
            bars = {
                name: display.add_task(f"training {name}", total=steps, status="")
                for name in PLACEMENTS
            }
            running = True
            while running:
                time.sleep(0.5)
                running = any(process.poll() is None for process in processes.values())
                for name, process in processes.items():
                    if process.returncode:
                        raise UserError(f"training {name}: {_last_line(process)}")
                    _show(display, bars[name], out / name)
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.terminate()
            process.wait()


def _last_line(process: subprocess.Popen) -> str:
    assert process.stderr is not None
    lines = process.stderr.read().strip().splitlines()
    return lines[-1] if lines else f"ended with code {process.returncode}"


def _show(display: console.Progress, bar: console.TaskID, run: Path) -> None:
    records = [record for record in read_metrics(run) if "loss" in record]
    if records:
        last = records[-1]
        rate = f"{last['tokens_per_second']:,.0f} tokens/s"
        display.update(bar, completed=last["step"], status=f"loss {last['loss']:.3f}  {rate}")
