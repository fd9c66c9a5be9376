"""The demonstration: the dense Transformer and LPA side by side on the bundled corpus, in minutes."""

from dataclasses import asdict, dataclass
from pathlib import Path

from lpa.display import console
from lpa.errors import UserError
from lpa.eval.generate import generate_text
from lpa.eval.perplexity import Evaluation
from lpa.storage.files import write_json, write_text_atomic
from lpa.storage.locks import lock_directory
from lpa.storage.outputs import Marker, check_output_directory, remove_content
from lpa.study.bundled_data import prepare_bundled
from lpa.study.demo.demo_report import write_demo_report
from lpa.study.execution.job import FAILURE_SUFFIX, Job, read_test
from lpa.study.execution.job_runner import run_jobs
from lpa.train.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from lpa.train.logging.metrics_file import read_metrics
from lpa.train.result import RunResult

VOCAB_SIZE = 2048
STEPS = 300
PROMPT = "My fellow Americans,"

PLACEMENTS = {"dense": "none", "lpa": "attention"}

# Both that of recipes/nano.yaml, which trains these models at these batches; scripts/tune_demo tries others.
LEARNING_RATES = {"dense": 4e-3, "lpa": 4e-3}


@dataclass
class DemoFigures:
    """The figures of one model, by whose name `lpa demo --json` prints them."""

    parameters: int
    train_flops_per_token: int
    tokens_per_second: float
    wall_seconds: float
    peak_memory_bytes: int
    test_perplexity: float
    test_word_perplexity: float
    test_bits_per_byte: float

    @classmethod
    def from_run(cls, run: RunResult, test: Evaluation) -> "DemoFigures":
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
        data=DataConfig(path=data, seq_len=256),
        model=ModelConfig(preset="nano", initializer_range=0.005),
        optim=OptimConfig(name="muon", warmup_steps=min(20, steps // 4)),
        train=TrainConfig(
            steps=steps,
            batch_size=8,
            seed=seed,
            log_every=5,
            eval_every=max(1, steps // 6),
            device="cpu",
            dtype="auto",
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
    check_output_directory(out, _MARKER.kind, overwrite=overwrite)
    with lock_directory(out):
        check_output_directory(out, _MARKER.kind, overwrite=overwrite)
        remove_content(out)
        _MARKER.save(out)
        return _run_demo(out, steps, seed)


def _run_demo(out: Path, steps: int, seed: int) -> DemoResult:
    data = prepare_demo_data(out)
    jobs = train_both(out, data, LEARNING_RATES, steps=steps, seed=seed)

    results = {name: RunResult.load(out / name) for name in PLACEMENTS}
    figures = {
        name: DemoFigures.from_run(results[name], read_test(job.run)) for name, job in jobs.items()
    }
    with console.progress_display() as display:
        bar = display.add_task("samples", total=len(PLACEMENTS), status="")
        samples = {}
        for name in PLACEMENTS:
            samples[name] = generate_text(
                out / name, PROMPT, max_new_tokens=80, seed=seed, device="cpu"
            )[0]
            display.advance(bar)

    write_json(out / "result.json", {name: asdict(value) for name, value in figures.items()})
    report = out / "report.html"
    write_demo_report(
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


# The directory of a demonstration as its marker tells it.
_MARKER = Marker(
    "a demonstration",
    [
        *("data/*", ".data.partial/*", "result.json", "report.html", ".*.tmp"),
        *(f"{name}{ending}" for name in PLACEMENTS for ending in ("/*", ".yaml", ".log")),
        *(f"{name}{ending}" for name in PLACEMENTS for ending in (".lock", FAILURE_SUFFIX)),
    ],
)


def prepare_demo_data(out: Path) -> Path:
    """Write `data/` from the bundled corpus and return it."""
    data = out / "data"
    with console.progress_display() as display:
        bar = display.add_task("tokenizer and tokens", total=None, status="")
        prepare_bundled(data, VOCAB_SIZE)
        display.update(bar, total=1, completed=1)
    return data


def train_both(
    out: Path, data: Path, learning_rates: dict[str, float], *, steps: int = STEPS, seed: int = 0
) -> dict[str, Job]:
    """Train and score both models at the same time, and show how far they are.

    Raises:
        UserError: one of them failed; the other was stopped.
    """
    jobs = {
        name: Job(name, seed, name, out / name, out / f"{name}.yaml", out / f"{name}.log")
        for name in PLACEMENTS
    }
    for name, job in jobs.items():
        config = demo_config(data, steps=steps, seed=seed)
        config.model.placement = PLACEMENTS[name]
        config.optim.lr = learning_rates[name]
        write_text_atomic(job.recipe, config.to_yaml())
    with console.progress_display() as display:
        bars = {name: display.add_task(f"training {name}", total=steps, status="") for name in jobs}

        def show() -> None:
            for name, bar in bars.items():
                _show_progress(display, bar, jobs[name].run)

        failed = run_jobs(list(jobs.values()), len(jobs), on_tick=show, stop_on_failure=True)
    for job in failed:
        lines = job.log.read_text(errors="replace").strip().splitlines()
        raise UserError(
            f"training {job.variant}: {lines[-1] if lines else 'failed'}; see {job.log}"
        )
    return jobs


def _show_progress(display: console.Progress, bar: console.TaskID, run: Path) -> None:
    records = [record for record in read_metrics(run) if "loss" in record]
    if records:
        last = records[-1]
        rate = f"{last['tokens_per_second']:,.0f} tokens/s"
        display.update(bar, completed=last["step"], status=f"loss {last['loss']:.3f}  {rate}")
