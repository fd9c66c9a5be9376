import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from lpa.model import LPAConfig, LPAForCausalLM
from lpa.scoring.perplexity import Perplexity
from lpa.train.validation import total_nll

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}


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
    total = total_nll(model, tokens, seq_len=8, batch_size=3, device=torch.device("cpu"))
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
    cpu = torch.device("cpu")
    total = total_nll(model, tokens, seq_len=10, batch_size=2, device=cpu, eos_token_id=0)
    assert total == pytest.approx(expected, rel=1e-5)
    assert total != pytest.approx(total_nll(model, tokens, seq_len=10, batch_size=2, device=cpu))


def test_perplexity_per_token_per_word_and_bits_per_byte():
    result = Perplexity.from_total_nll(100 * math.log(8), tokens=100, words=50, bytes=400)
    assert result.loss == pytest.approx(math.log(8))
    assert result.perplexity == pytest.approx(8)
    assert result.word_perplexity == pytest.approx(64)
    assert result.bits_per_byte == pytest.approx(0.75)


def test_a_hopeless_model_has_an_infinite_word_perplexity_and_no_error():
    assert (
        Perplexity.from_total_nll(1e6, tokens=1000, words=10, bytes=1).word_perplexity == math.inf
    )
