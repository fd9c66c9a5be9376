"""Compiled layers keep to one graph each, however many kinds of them and of inputs there are."""

import pytest
import torch
from small_models import small_model

from lpa.model.compile import compile_layers, eager_layers


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_layers_of_many_ranks_train_evaluate_and_write(monkeypatch):
    """Four kinds of layers in three situations, which is more than the eight graphs of torch's limit."""
    monkeypatch.setattr(torch.nn.Module, "compile", _without_code_generation)
    ranks = list(range(2, 6))
    model = small_model(num_hidden_layers=4, ranks={"o_proj": ranks})
    ids = torch.randint(0, 97, (4, 16), generator=torch.Generator().manual_seed(0))
    expected = [model(input_ids=ids[:n], labels=ids[:n]).loss for n in (4, 3)]
    compile_layers(model)
    model.train()
    model(input_ids=ids, labels=ids, return_logits=False).loss.backward()
    model.eval()
    with torch.no_grad():
        for n, loss in zip((4, 3), expected, strict=True):
            found = model(input_ids=ids[:n], labels=ids[:n], use_cache=False).loss
            torch.testing.assert_close(found, loss)
    with eager_layers():
        model.generate(ids[:1], max_new_tokens=3, do_sample=False, pad_token_id=0)


_compile = torch.nn.Module.compile


def _without_code_generation(module, **options):
    """The limits are those of the tracer; no code need be built for them."""
    _compile(module, backend="aot_eager", **options)
