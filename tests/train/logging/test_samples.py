import json

import torch
from helpers.small_runs import small_config
from safetensors.torch import load_file

from lpa.train.run import train


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
