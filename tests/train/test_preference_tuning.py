"""A model of ours in TRL's trainers for preferences and rewards."""

import copy

import pytest
import torch
from helpers.small_models import small_model
from transformers import AutoModelForCausalLM, AutoTokenizer

trl = pytest.importorskip("trl")

PAIRS = [{"prompt": "We", "chosen": " the people", "rejected": " no one at all"}] * 8
OPTIONS = {
    "per_device_train_batch_size": 2,
    "max_steps": 6,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture
def tokenizer(prepared):
    return AutoTokenizer.from_pretrained(prepared / "tokenizer")


def test_preferences_are_learned(tokenizer, tmp_path):
    """DPO without a reference model, which TRL loads itself from where the model came from."""
    from datasets import Dataset

    small_model(vocab_size=300).save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = copy.deepcopy(model.state_dict())
    trainer = trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(output_dir=str(tmp_path), **OPTIONS),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(PAIRS),
    )
    trainer.train()
    margins = [r["rewards/margins"] for r in trainer.state.log_history if "rewards/margins" in r]
    assert margins[-1] > margins[0]
    changed = model.state_dict()
    factor = "model.layers.0.self_attn.q_proj.down.weight"
    assert not torch.equal(changed[factor], before[factor])


def test_rewards_are_computed_from_what_it_says(tokenizer, tmp_path):
    """GRPO generates, scores and steps."""
    from datasets import Dataset

    said: list[str] = []

    def reward(completions, **_):
        said.extend(completions)
        return [float(len(text)) for text in completions]

    trainer = trl.GRPOTrainer(
        model=small_model(vocab_size=300).train(),
        reward_funcs=reward,
        args=trl.GRPOConfig(
            output_dir=str(tmp_path), num_generations=2, max_completion_length=4,
            **(OPTIONS | {"max_steps": 2}),
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "We"}] * 8),
    )  # fmt: skip
    trainer.train()
    assert len(said) == 4
    assert all("reward" in r for r in trainer.state.log_history if "loss" in r)
