import json
import os
import signal

import pytest
import torch
from helpers.small_runs import small_config
from safetensors.torch import load_file

from lpa.train.checkpoint.store import checkpoint_path
from lpa.train.result import RunInterruptedError
from lpa.train.run import train
from lpa.train.trainer import Trainer


def test_samples_are_kept_and_change_no_weight(prepared, tmp_path):
    for run, fields in (
        ("plain", {}),
        ("sampled", {"sample_every": 2, "sample_prompt": "My fellow", "sample_tokens": 5}),
    ):
        model = {"resid_pdrop": 0.1}  # so that a random number drawn on the way would show
        train(small_config(prepared, steps=4, threads=1, model=model, **fields), tmp_path / run)
    lines = (tmp_path / "sampled/samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["step"] for sample in samples] == [2, 4]
    assert all(sample["text"].startswith("My fellow") for sample in samples)
    assert all(len(sample["text"]) > len("My fellow") for sample in samples)
    weights = [
        load_file(tmp_path / run / "final/model.safetensors") for run in ("plain", "sampled")
    ]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_an_empty_prompt_begins_a_document_and_a_long_one_is_truncated(prepared, tmp_path):
    for prompt in ("", "My fellow citizens " * 30):
        config = small_config(prepared, steps=1, sample_every=1, sample_prompt=prompt)
        train(config, tmp_path / str(len(prompt)))
        assert (tmp_path / str(len(prompt)) / "samples.jsonl").exists()


def test_the_best_model_is_kept_beside_the_last(prepared, tmp_path):
    """At rates that rise to the end and make the model worse with every evaluation."""
    config = small_config(
        prepared,
        steps=12,
        eval_every=2,
        eval_tokens=500,
        checkpoint={"keep_best": True},
        optim={"lr": 1.0, "warmup_steps": 12, "max_grad_norm": 100.0},
    )
    result = train(config, tmp_path / "run")
    assert result.best_step < 12
    best = load_file(tmp_path / "run/best/model.safetensors")
    final = load_file(tmp_path / "run/final/model.safetensors")
    assert any(not torch.equal(best[name], final[name]) for name in final)


def test_a_run_ends_when_its_time_is_up(prepared, tmp_path):
    config = small_config(prepared, steps=100_000, max_seconds=1.0)
    stopped = train(config, tmp_path / "run")
    assert stopped.reason == "train.max_seconds"
    assert 0 < stopped.step < 100_000
    assert (tmp_path / f"run/checkpoints/step-{stopped.step:08d}/manifest.json").exists()


def test_a_prompt_that_is_too_long_is_shown_as_the_model_saw_it(prepared, tmp_path):
    prompt = "".join(f"{number} " for number in range(300))
    config = small_config(prepared, steps=1, sample_every=1, sample_prompt=prompt)
    train(config, tmp_path / "run")
    text = json.loads((tmp_path / "run/samples.jsonl").read_text())["text"]
    assert "298 299 " in text
    assert "100 " not in text


def test_a_context_of_one_token_has_no_room_for_a_sample(prepared, tmp_path):
    config = small_config(prepared, steps=1, sample_every=1)
    config.data.seq_len = 1
    train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run/samples.jsonl").read_text()) == {"step": 1, "text": ""}


def test_a_sample_that_a_signal_put_off_is_taken_when_the_run_goes_on(
    prepared, tmp_path, monkeypatch
):
    step = Trainer.train_step

    def step_with_a_signal(trainer):
        if trainer.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    def crash(trainer):
        raise ZeroDivisionError

    def samples(run):
        lines = (tmp_path / run / "samples.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    config = small_config(prepared, steps=6, threads=1, sample_every=2, sample_prompt="My fellow")
    train(config, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_with_a_signal)
        with pytest.raises(RunInterruptedError):
            train(config, tmp_path / "stopped")
    assert [sample["step"] for sample in samples("stopped")] == [2]
    with monkeypatch.context() as patch:  # a crash before the next checkpoint
        patch.setattr(Trainer, "train_step", crash)
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path / "stopped", resume=True)
    assert [sample["step"] for sample in samples("stopped")] == [2, 4]
    train(config, tmp_path / "stopped", resume=True)
    assert samples("stopped") == samples("straight")


def test_samples_after_the_resumed_step_are_dropped(prepared, tmp_path):
    config = small_config(
        prepared, steps=6, sample_every=1, sample_tokens=3, stop_at=4, checkpoint={"every": 2}
    )
    train(config, tmp_path / "run")
    file = tmp_path / "run/samples.jsonl"
    file.write_text(file.read_text() + '{"step": 5, "te')
    config.train.stop_at = None
    train(config, tmp_path / "run", resume=checkpoint_path(tmp_path / "run", 2))
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_the_evaluation_of_the_whole_split_is_not_compared_with_those_of_a_part(prepared, tmp_path):
    """Weights that do not move: any difference is one of the text."""
    config = small_config(
        prepared, steps=6, eval_every=2, eval_tokens=64, optim={"lr": 1e-12}, loggers=[]
    )
    assert train(config, tmp_path / "part").best_step in (2, 4)
    config.train.eval_tokens = 0
    whole = train(config, tmp_path / "whole")
    assert whole.best_step is not None
