"""Attention by each implementation: equal where it runs, refused in one line where it cannot."""

from typing import get_args

import pytest
import torch
from helpers.small_models import small_model

from lpa.errors import UserError
from lpa.model.compile import eager_layers
from lpa.model.layers import attention
from lpa.model.layers.attention import IMPLEMENTATIONS, check_attention
from lpa.train.config import ModelConfig

# Two samples of two and three documents each, as position ids tell them apart.
DOCUMENTS = torch.tensor(
    [[*range(9), *range(7)], [*range(4), *range(4), *range(8)]], dtype=torch.int64
)


def test_the_field_accepts_what_is_known():
    kind = ModelConfig.__dataclass_fields__["attn_implementation"].type
    assert set(get_args(get_args(kind)[0])) == set(IMPLEMENTATIONS)


@pytest.mark.parametrize(
    ("name", "device", "dtype", "changes", "message"),
    [
        ("eager", "cpu", "float32", {"dropout": 0.1, "separates_documents": True}, None),
        ("sdpa", "cpu", "bfloat16", {"dropout": 0.1, "separates_documents": True}, None),
        ("sdpa", "cuda", "float32", {}, None),
        ("flex_attention", "cuda", "float32", {"separates_documents": True}, None),
        (
            "flex_attention",
            "cpu",
            "float32",
            {},
            "torch trains on GPUs alone; expected sdpa or eager",
        ),
        ("flex_attention", "cuda", "bfloat16", {"dropout": 0.1}, "model.attention_dropout 0.1"),
        ("flash_attention_2", "cuda", "bfloat16", {"dropout": 0.1}, None),
        ("flash_attention_2", "cpu", "bfloat16", {}, "needs a GPU; expected sdpa or eager on cpu"),
        ("flash_attention_2", "cuda", "float32", {}, "expected it with train.dtype bfloat16"),
        (
            "flash_attention_2",
            "cuda",
            "bfloat16",
            {"installed": False},
            "the module flash_attn, not",
        ),
        (
            "flash_attention_3",
            "cuda",
            "bfloat16",
            {"installed": False},
            "module flash_attn_interface",
        ),
        (
            "flash_attention_3",
            "cuda",
            "bfloat16",
            {"separates_documents": True},
            "micro_batch_size 1",
        ),
        (
            *("flash_attention_3", "cuda", "bfloat16"),
            {"separates_documents": True, "micro_batch_size": 1},
            None,
        ),
    ],
)
def test_what_cannot_run_is_refused_with_what_can(
    monkeypatch, name, device, dtype, changes, message
):
    installed = changes.pop("installed", True)
    monkeypatch.setattr(attention, "find_spec", lambda module: installed or None)
    settings = {"dropout": 0.0, "separates_documents": False, "micro_batch_size": 4} | changes

    def check() -> None:
        check_attention(name, torch.device(device), getattr(torch, dtype), **settings)

    if message is None:
        return check()
    with pytest.raises(UserError, match=f"model.attn_implementation: got {name}, .*{message}"):
        check()
    return None


def outputs(name: str, position_ids: torch.Tensor | None, **fields):
    """Logits and gradients of the first layer's queries."""
    model = small_model(attn_implementation=name, num_key_value_heads=2, **fields)
    assert model.config._attn_implementation == name
    tokens = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(0))
    options = {"position_ids": position_ids, "use_cache": False}
    if name == "flex_attention":  # of which torch has no gradient on a CPU
        with eager_layers(), torch.no_grad():
            return model(tokens, **options).logits, None
    logits = model(tokens, **options).logits
    logits.square().mean().backward()
    return logits.detach(), model.model.layers[0].self_attn.q_proj.down.weight.grad


@pytest.mark.parametrize("name", ["eager", "flex_attention"])
@pytest.mark.parametrize("position_ids", [None, DOCUMENTS], ids=["causal", "documents"])
def test_every_implementation_that_runs_here_gives_the_same(name, position_ids):
    expected, gradient = outputs("sdpa", position_ids)
    logits, found = outputs(name, position_ids)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    if found is not None:
        torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-3)
    if position_ids is not None:
        causal, _ = outputs(name, None)
        assert not torch.allclose(causal[0, 9:], logits[0, 9:], atol=1e-2)
