import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_flash_attention_utils import _is_packed_sequence
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lpa.model import LPAConfig, LPAForCausalLM
from lpa.scoring.losses import batch_nlls, token_losses
from lpa.scoring.windows import batch_windows, collate_windows, sequence_windows

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}


def total_of(model, tokens, *, seq_len, batch_size, eos_token_id=None):
    windows = batch_windows(sequence_windows(tokens, seq_len=seq_len), batch_size)
    batches = (collate_windows(b, length=seq_len, eos_token_id=eos_token_id) for b in windows)
    return batch_nlls(model, batches, device=torch.device("cpu")).sum()


@pytest.mark.parametrize("kind", ["lpa", "llama"])
@pytest.mark.parametrize("length", [2, 9, 50])
def test_total_loss_is_that_of_the_windows_one_by_one(kind, length):
    torch.manual_seed(0)
    if kind == "lpa":
        model = LPAForCausalLM(LPAConfig(**SIZES, rank=4))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    tokens = np.random.default_rng(0).integers(0, 50, length)
    model.eval()
    expected = 0.0
    for start in range(0, length - 1, 8):
        window = torch.tensor(tokens[start : start + 9])
        logits = model(window[None, :-1]).logits[0]
        expected += F.cross_entropy(logits, window[1:], reduction="sum").item()
    model.train()
    total = total_of(model, tokens, seq_len=8, batch_size=3)
    assert total == pytest.approx(expected, rel=1e-5)
    assert model.training  # left as it was


def test_documents_of_a_window_are_scored_as_they_were_trained():
    torch.manual_seed(0)
    model = LPAForCausalLM(LPAConfig(**SIZES, rank=4)).eval()
    tokens = np.random.default_rng(0).integers(1, 50, 30)
    tokens[[5, 13]] = 0  # what ends a document
    expected = 0.0
    for start in range(0, 29, 10):
        window = torch.tensor(tokens[start : start + 11])
        ends = [i + 1 for i, token in enumerate(window[:-1].tolist()) if token == 0]
        for first, last in zip([0, *ends], [*ends, len(window) - 1], strict=True):
            logits = model(window[None, first:last]).logits[0]
            targets = window[first + 1 : last + 1]
            expected += F.cross_entropy(logits, targets, reduction="sum").item()
    total = total_of(model, tokens, seq_len=10, batch_size=2, eos_token_id=0)
    assert total == pytest.approx(expected, rel=1e-5)
    assert total != pytest.approx(total_of(model, tokens, seq_len=10, batch_size=2))


@pytest.mark.parametrize("stride", [8, 3])
def test_losses_one_by_one_add_up_to_the_total(stride):
    torch.manual_seed(0)
    model = LPAForCausalLM(LPAConfig(**SIZES, rank=4)).eval()
    tokens = np.random.default_rng(0).integers(0, 50, 45)
    batches = list(batch_windows(sequence_windows(tokens, seq_len=8, stride=stride), 3))
    losses = np.concatenate(
        [row for batch in batches for row in token_losses(model, batch, eos_token_id=None)]
    )
    assert losses.shape == (44,)
    total = batch_nlls(model, map(collate_windows, batches), device=torch.device("cpu")).sum()
    # The same float32 losses, from logits here and from the chunked head there.
    assert losses.sum() == pytest.approx(total, rel=1e-5)


def flash_stand_in(module, query, key, value, attention_mask, *, position_ids, **kwargs):
    """As transformers calls flash attention: it sees no mask, and the documents of a batch of one alone."""
    mask = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()
    if _is_packed_sequence(position_ids, query.shape[0]):
        documents = (position_ids[0] == 0).cumsum(0)
        mask = mask & (documents[:, None] == documents)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2), None


def test_flash_attention_keeps_documents_of_a_batch_apart(monkeypatch):
    torch.manual_seed(0)
    config = LPAConfig(**SIZES, rank=4, intra_document_mask=True)
    model = LPAForCausalLM(config).eval()
    tokens = np.random.default_rng(0).integers(1, 50, 30)
    tokens[[5, 13, 27]] = 0  # what ends a document
    batch = list(sequence_windows(tokens, seq_len=10))
    expected = token_losses(model, batch, eos_token_id=0)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_stand_in)
    model.config._attn_implementation = "flash_attention_2"
    found = token_losses(model, batch, eos_token_id=0)
    for row, expected_row in zip(found, expected, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-5)


def test_a_total_that_is_given_up_is_none():
    model = LPAForCausalLM(LPAConfig(**SIZES, rank=4)).train()
    batches = iter([collate_windows(list(sequence_windows(np.arange(9), seq_len=8)))])
    device = torch.device("cpu")
    assert batch_nlls(model, batches, device=device, should_stop=lambda: True) is None
    assert model.training
