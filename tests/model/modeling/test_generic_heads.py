"""The heads that transformers adds to any decoder: token classification and question answering."""

import pytest
import torch
from helpers.small_models import small_config, small_model
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

from lpa.model import LPAForQuestionAnswering, LPAForTokenClassification

TOKENS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(0))
HEADS = {
    "tokens": (
        AutoModelForTokenClassification,
        LPAForTokenClassification,
        {"labels": TOKENS % 3},
        {"logits": (2, 12, 3)},
    ),
    "answers": (
        AutoModelForQuestionAnswering,
        LPAForQuestionAnswering,
        {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([4, 9])},
        {"start_logits": (2, 12), "end_logits": (2, 12)},
    ),
}


@pytest.mark.parametrize("decoder_type", ["llama", "paper"])
@pytest.mark.parametrize("name", HEADS)
def test_it_trains_saves_and_reloads(name, decoder_type, tmp_path):
    auto, model_class, labels, shapes = HEADS[name]
    small_model(decoder_type=decoder_type).save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = auto.from_pretrained(tmp_path / "base", num_labels=3)
    assert type(model) is model_class
    base = small_model(decoder_type=decoder_type).model
    assert torch.equal(model.model.embed_tokens.weight, base.embed_tokens.weight)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = model(TOKENS, **labels).loss  # in evaluation mode, without dropout
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    model.save_pretrained(tmp_path / "head")
    again, found = auto.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert type(again) is model_class
    assert not any(found.values())
    expected, output = model(TOKENS), again(TOKENS)
    for field, shape in shapes.items():
        assert output[field].shape == shape
        assert torch.equal(output[field], expected[field])


@pytest.mark.parametrize("name", HEADS)
def test_it_starts_of_a_configuration(name):
    auto, model_class, *_ = HEADS[name]
    assert type(auto.from_config(small_config())) is model_class
