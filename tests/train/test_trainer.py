"""Runs through the real command line, stopped by real signals."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers.matrix_products import MatrixProducts
from helpers.runs import untimed_metrics
from safetensors.torch import load_file

from lpa.device import fast_dtype
from lpa.errors import UserError
from lpa.train.checkpoint.store import list_checkpoints
from lpa.train.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from lpa.train.logging.metrics_file import read_metrics
from lpa.train.run import train
from lpa.train.trainer import Trainer

STEPS = 60


@pytest.fixture(scope="module")
def options(prepared, tiny):
    """What the runs of this module share; dropout, so that random states matter too."""
    return [
        *("train", "--data.path", prepared, *tiny, "--train.steps", STEPS),
        *("--model.attention_dropout", "0.1", "--checkpoint.every", 20, "--train.eval_every", 25),
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, lpa, options) -> Path:
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("straight") / "run"
    finished = lpa(*options, "--out", out)
    assert finished.code == 0, finished.stderr
    return out


def assert_same_run(run: Path, other: Path) -> None:
    (shard,) = (path.name for path in list_checkpoints(run)[-1].glob("*.safetensors"))
    for name in ("final/model.safetensors", f"checkpoints/step-00000060/{shard}"):
        ours, theirs = load_file(run / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key
    assert untimed_metrics(run) == untimed_metrics(other)


def test_the_same_command_gives_the_same_bits(straight, options, lpa, tmp_path):
    assert lpa(*options, "--out", tmp_path / "again").code == 0
    assert_same_run(tmp_path / "again", straight)


def test_the_loss_falls(straight):
    losses = [record["loss"] for record in read_metrics(straight) if "loss" in record]
    assert losses[-1] < losses[0] - 0.3


def test_stopping_halfway_and_resuming_changes_no_bit(straight, options, lpa, tmp_path):
    out = tmp_path / "run"
    # Between two records, so that their means must be carried over too.
    first = lpa(*options, "--out", out, "--train.stop_at", 33)
    assert first.code == 0, first.stderr
    assert "stopped at step 33; --resume continues" in first.stdout
    assert not (out / "final").exists()
    second = lpa(*options, "--out", out, "--resume")
    assert second.code == 0, second.stderr
    assert_same_run(out, straight)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_resumes_to_the_same_bits(straight, options, lpa, tmp_path, number):
    out = tmp_path / "run"
    process = lpa.start("-m", "lpa", *options, "--out", out)
    deadline = time.monotonic() + 60
    while not list_checkpoints(out):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert not (out / "final").exists(), "the run ended before the signal came"
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:  # the step in hand is saved
        assert process.returncode == 128 + number, printed
        assert f"stopped by {number.name} at step" in printed
    finished = lpa(*options, "--out", out, "--resume")
    assert finished.code == 0, finished.stderr
    assert_same_run(out, straight)


def test_resuming_a_finished_run_reports_it_again(straight, options, lpa):
    before = (straight / "final/model.safetensors").stat().st_mtime_ns
    finished = lpa(*options, "--out", straight, "--resume", "--json")
    assert finished.code == 0, finished.stderr
    assert finished.json["steps"] == STEPS
    assert (straight / "final/model.safetensors").stat().st_mtime_ns == before


def test_a_run_directory_holds_what_the_contract_says(straight):
    config = yaml.safe_load((straight / "config.yaml").read_text())
    assert config["train"]["steps"] == STEPS
    assert config["optim"]["beta2"] == 0.95  # resolved: defaults are written out
    assert [path.name for path in list_checkpoints(straight)] == ["step-00000040", "step-00000060"]
    final = {path.name for path in (straight / "final").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= final
    assert list(straight.glob("events.out.tfevents.*"))
    assert not list(straight.rglob("*.tmp"))
    result = json.loads((straight / "result.json").read_text())
    assert result["tokens"] == STEPS * 4 * 32
    assert [r["step"] for r in read_metrics(straight) if "validation_loss" in r] == [25, 50, 60]


def test_final_loads_with_the_auto_classes(straight, lpa, tmp_path):
    script = tmp_path / "load.py"
    script.write_text(f"""
import lpa
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(straight / "final")!r})
tokenizer = AutoTokenizer.from_pretrained({str(straight / "final")!r})
output = model.generate(**tokenizer("My fellow", return_tensors="pt"), max_new_tokens=4, do_sample=False)
print(type(model).__name__, tokenizer.decode(output[0]).startswith("My fellow"), len(output[0]))
""")
    result = lpa(script=script)
    assert result.stdout.split()[:2] == ["LPAForCausalLM", "True"], result.stderr


def small_config(prepared, micro_batch_size: int) -> RunConfig:
    return RunConfig(
        data=DataConfig(prepared, seq_len=32),
        model=ModelConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, rank=8
        ),
        optim=OptimConfig(warmup_steps=2, max_grad_norm=0.5),
        train=TrainConfig(steps=10, batch_size=8, micro_batch_size=micro_batch_size, device="cpu"),
    )


def test_accumulated_micro_batches_equal_one_batch(prepared, tmp_path):
    models = {}
    for size in (8, 2, 1):
        trainer = Trainer(small_config(prepared, size), tmp_path)
        losses = [trainer.train_step().loss for _ in range(5)]
        models[size] = losses, dict(trainer.model.named_parameters())
    for size in (2, 1):
        assert models[size][0] == pytest.approx(models[8][0], rel=1e-5)
        for name, parameter in models[size][1].items():
            torch.testing.assert_close(
                parameter, models[8][1][name], atol=2e-5, rtol=1e-3, msg=name
            )


def test_the_loss_reported_is_the_mean_over_the_batch(prepared, tmp_path):
    trainer = Trainer(small_config(prepared, 2), tmp_path)
    samples = [trainer.data.dataset[index] for index in range(8)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    expected = trainer.model(**batch).loss.item()
    assert trainer.train_step().loss == pytest.approx(expected, rel=1e-5)


def test_bfloat16_trains_and_keeps_float32_weights(prepared, tmp_path):
    config = small_config(prepared, 8)
    config.train.dtype = "bfloat16"
    trainer = Trainer(config, tmp_path)
    losses = [trainer.train_step().loss for _ in range(10)]
    assert losses[-1] < losses[0]
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_compiled_steps_equal_plain_ones(prepared, tmp_path):
    losses = {}
    for compiled in (False, True):
        config = small_config(prepared, 8)
        config.train.compile = compiled
        config.train.activation_checkpointing = "latent" if compiled else "none"
        trainer = Trainer(config, tmp_path)
        losses[compiled] = [trainer.train_step().loss for _ in range(3)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_separate_documents_train_and_resume_to_the_same_bits(options, lpa, tmp_path):
    apart = [*options, "--data.intra_document_mask", "true"]
    assert lpa(*apart, "--out", tmp_path / "one").code == 0
    assert lpa(*apart, "--out", tmp_path / "two", "--train.stop_at", 33).code == 0
    finished = lpa(*apart, "--out", tmp_path / "two", "--data.num_workers", 2, "--resume")
    assert finished.code == 0, finished.stderr
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("micro_batch_size", [1, 8])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_products_of_a_step_are_of_its_dtype_on_every_machine(
    prepared, tmp_path, dtype, optimizer, micro_batch_size
):
    config = small_config(prepared, micro_batch_size)
    config.train.dtype, config.optim.name = dtype, optimizer
    trainer = Trainer(config, tmp_path)
    with MatrixProducts() as products:
        trainer.train_step()
    assert products.dtypes == {getattr(torch, dtype)}


def test_attention_by_another_implementation_trains_alike(prepared, tmp_path):
    losses = {}
    for name in (None, "sdpa", "eager"):
        config = small_config(prepared, 8)
        config.model.attn_implementation = name
        config.data.intra_document_mask = True
        trainer = Trainer(config, tmp_path)
        assert trainer.model.config._attn_implementation == (name or "sdpa")
        losses[name] = [trainer.train_step().loss for _ in range(3)]
    assert losses["sdpa"] == losses[None]
    assert losses["eager"] == pytest.approx(losses[None], rel=1e-5)


def test_attention_that_cannot_train_here_is_refused_before_anything_is_written(prepared, tmp_path):
    config = small_config(prepared, 8)
    config.model.attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="flex_attention, which torch trains on GPUs alone"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(
    fast_dtype("cpu") != torch.bfloat16, reason="only units for bfloat16 make a difference"
)
def test_products_in_float32_are_as_precise_as_asked(prepared, tmp_path):
    losses = {}
    for precision in ("highest", "medium", None):
        config = small_config(prepared, 8)
        config.model.hidden_size = 256  # smaller products are never rounded
        config.train.matmul_precision = precision
        trainer = Trainer(config, tmp_path)
        losses[precision] = [trainer.train_step().loss for _ in range(3)]
    assert losses[None] == losses["highest"]
    assert losses["medium"] != losses["highest"]
    # Factors of products have 8 bits.
    assert losses["medium"] == pytest.approx(losses["highest"], rel=1e-2)
