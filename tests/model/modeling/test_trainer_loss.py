"""Every way in which the Trainer of transformers takes a loss from a model, beside the merged Llama."""

import peft
import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import small_config, small_model
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from lpa.convert.merge import merge_to_llama
from lpa.model import LPAForCausalLM, LPAForSequenceClassification


def shifted_loss(outputs, labels, num_items_in_batch=None):
    """What people pass as `compute_loss_func`."""
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    total = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    return total / (logits.shape[0] if num_items_in_batch is None else num_items_in_batch)


WAYS = {
    "plain": {},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "a function of the user": {"compute_loss_func": shifted_loss},
}


def losses_in_trainer(
    model, folder, *, rows, accumulation=1, prediction_loss_only=False, **options
):
    """Loss of a step that changes nothing, and of an evaluation with its perplexity by `compute_metrics`."""
    function = options.pop("compute_loss_func", None)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=4 // accumulation,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.0,
        logging_steps=1,
        max_grad_norm=1e9,
        prediction_loss_only=prediction_loss_only,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        compute_loss_func=function,
        compute_metrics=lambda found: {"shape": list(found.predictions.shape)},
    )
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return logged["loss"], logged["grad_norm"], trainer.evaluate()


@pytest.fixture(scope="module")
def rows():
    tokens = torch.randint(97, (4, 12), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[0, 5:] = -100  # parts of a batch with fewer targets
    return [{"input_ids": t, "labels": label} for t, label in zip(tokens, labels, strict=True)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_loss_is_that_of_the_merged_llama(rows, tmp_path, way, accumulation):
    model = small_model()
    llama = merge_to_llama(model)
    assert type(llama) is LlamaForCausalLM
    ours, theirs = (
        losses_in_trainer(m, tmp_path, rows=rows, accumulation=accumulation, **WAYS[way])
        for m in (model, llama)
    )
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)  # logged with four digits after the point
    assert ours[2]["eval_loss"] == pytest.approx(theirs[2]["eval_loss"], rel=1e-5)  # rounding
    assert ours[2]["eval_shape"] == theirs[2]["eval_shape"] == [4, 12, 97]


@pytest.mark.parametrize("way", WAYS)
def test_an_evaluation_of_the_loss_alone(rows, tmp_path, way):
    model = small_model()
    whole = losses_in_trainer(model, tmp_path, rows=rows, **WAYS[way])[2]
    alone = losses_in_trainer(model, tmp_path, rows=rows, prediction_loss_only=True, **WAYS[way])[2]
    assert alone["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-6)
    assert "eval_shape" not in alone


def test_label_smoothing_through_peft(rows, tmp_path):
    def adapted(model, targets):
        config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
        return peft.get_peft_model(model, config)

    model = small_model()
    pairs = ["q_proj.down", "q_proj.up"]
    ours = losses_in_trainer(adapted(model, pairs), tmp_path, rows=rows, **WAYS["label smoothing"])
    theirs = losses_in_trainer(
        merge_to_llama(small_model()), tmp_path, rows=rows, **WAYS["label smoothing"]
    )
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    assert ours[2]["eval_loss"] == pytest.approx(theirs[2]["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_parts_of_a_batch_of_the_classifier_add_up_to_its_mean(tmp_path, smoothing):
    tokens = torch.randint(97, (4, 12), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": t, "labels": torch.tensor(i % 3)} for i, t in enumerate(tokens)]

    def found(accumulation):
        torch.manual_seed(0)
        model = LPAForSequenceClassification(small_config(num_labels=3))
        return losses_in_trainer(
            model,
            tmp_path,
            rows=rows,
            accumulation=accumulation,
            label_smoothing_factor=smoothing,
        )

    whole, parts = found(1), found(2)
    assert parts[0] == pytest.approx(whole[0], rel=1e-3)
    assert parts[1] == pytest.approx(whole[1], rel=1e-3)
    assert parts[2]["eval_loss"] == pytest.approx(whole[2]["eval_loss"], rel=1e-5)
    assert parts[2]["eval_shape"] == [4, 3]


def test_a_loss_beside_targets_that_are_already_shifted(rows):
    """Padding-free collators bring `shift_labels`."""
    model = small_model()
    tokens, labels = (torch.stack([row[key] for row in rows]) for key in ("input_ids", "labels"))
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    expected = model(tokens, labels=labels).loss
    assert torch.equal(model(tokens, shift_labels=shifted).loss, expected)
    assert torch.equal(model(tokens, labels=labels, shift_labels=shifted).loss, expected)
    assert type(model) is LPAForCausalLM
