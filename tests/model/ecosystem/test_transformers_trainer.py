"""The Trainer of transformers trains, evaluates, keeps the best, saves and resumes, for each head."""

import numpy as np
import pytest
import torch
from helpers.architectures import tiny
from helpers.small_models import small_config
from transformers import Trainer, TrainerCallback, TrainingArguments

import lpa
from lpa.model import (
    LPAForCausalLM,
    LPAForSequenceClassification,
    LPAForTokenClassification,
)

STEPS = 6


def causal_rows():
    starts = torch.randint(90, (16, 1), generator=torch.Generator().manual_seed(0))
    rows = (starts + torch.arange(12)) % 97  # each token is the one before plus one
    return [{"input_ids": row, "labels": row} for row in rows]


def labelled_rows():
    tokens = torch.randint(97, (16, 12), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row[-1] % 3} for row in tokens]


def causal_metrics(found):
    assert isinstance(found.predictions, np.ndarray)  # the cache is not among them
    right = found.predictions[:, :-1].argmax(-1) == found.label_ids[:, 1:]
    return {"accuracy": right.mean()}


def label_metrics(found):
    assert isinstance(found.predictions, np.ndarray)
    return {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()}


def causal():
    return LPAForCausalLM(small_config(initializer_range=0.02))


def classifier():
    config = small_config(initializer_range=0.02, num_labels=3, pad_token_id=0)
    return LPAForSequenceClassification(config)


def factorized():
    """A model of another class with low-rank pairs inside."""
    model = tiny("gpt2")
    lpa.factorize(model, rank=5)
    return model


HEADS = {
    "causal": (causal, causal_rows, causal_metrics),
    "classifier": (classifier, labelled_rows, label_metrics),
    "factorized": (factorized, causal_rows, causal_metrics),
}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = (
            control.should_training_stop or state.global_step == self.step
        )


def trainer_of(head, folder, *, stop_at=None, **options):
    build, rows, metrics = HEADS[head]
    torch.manual_seed(0)
    model = build()
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 8,
            "learning_rate": 1e-2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "logging_steps": 1,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
        }
        | options,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=rows(),
        eval_dataset=rows(),
        compute_metrics=metrics,
        callbacks=[StopAt(stop_at)] if stop_at else [],
    )


@pytest.mark.parametrize(("accumulation", "loss_only"), [(1, False), (2, True)])
@pytest.mark.parametrize("head", HEADS)
def test_it_trains_and_evaluates_and_keeps_the_best(head, accumulation, loss_only, tmp_path):
    trainer = trainer_of(
        head,
        tmp_path,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        prediction_loss_only=loss_only,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss" if loss_only else "eval_accuracy",
        greater_is_better=not loss_only,
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == STEPS / 2
    assert losses[-1] < losses[0]
    assert trainer.state.best_model_checkpoint is not None
    found = trainer.evaluate()
    best = "eval_loss" if loss_only else "eval_accuracy"
    assert found[best] == pytest.approx(trainer.state.best_metric)
    assert ("eval_accuracy" in found) != loss_only


@pytest.mark.parametrize("head", HEADS)
def test_resumed_it_ends_with_the_weights_of_one_training(head, tmp_path):
    whole = trainer_of(head, tmp_path / "whole")
    whole.train()
    trainer_of(head, tmp_path / "parts", stop_at=4).train()
    parts = trainer_of(head, tmp_path / "parts")
    parts.train(resume_from_checkpoint=True)
    assert parts.state.global_step == STEPS
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, parts.model.get_parameter(name)), name


@pytest.mark.parametrize("head", HEADS)
def test_predictions_are_those_of_the_model(head, tmp_path):
    trainer = trainer_of(head, tmp_path)
    rows = trainer.eval_dataset
    found = trainer.predict(rows)
    ids = torch.stack([row["input_ids"] for row in rows])
    with torch.no_grad():
        logits = trainer.model.eval()(ids).logits
    torch.testing.assert_close(torch.from_numpy(found.predictions), logits, atol=1e-5, rtol=1e-5)
    assert found.metrics["test_accuracy"] == HEADS[head][2](found)["accuracy"]


def token_classifier():
    return LPAForTokenClassification(small_config(initializer_range=0.02, num_labels=3))


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        (causal, causal_rows),
        (classifier, labelled_rows),
        (token_classifier, lambda: [row | {"labels": row["labels"] % 3} for row in causal_rows()]),
    ],
)
def test_accumulation_changes_no_step(model, rows, tmp_path):
    weights, losses = [], []
    for accumulation in (1, 4):
        torch.manual_seed(0)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
        )
        trainer = Trainer(model(), arguments, train_dataset=rows())
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-4)
