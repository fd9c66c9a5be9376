"""Compiled layers keep to one graph each, however many kinds of them and of inputs there are."""

import pytest
import torch
from helpers.small_models import small_model

from lpa.model.compile import _GRAPHS_PER_LAYER, compile_layers, eager_layers


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """What the tracer makes while layers are compiled; no code is built for it."""
    traced: list[torch.fx.GraphModule] = []

    def keep(graph, inputs):
        traced.append(graph)
        return graph.forward

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module, **options: compile_module(module, backend=keep, **options),
    )
    return traced


IDS = torch.randint(0, 97, (4, 8), generator=torch.Generator().manual_seed(0))
DOCUMENTS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]).expand(4, -1)


def train_evaluate_and_write(model, position_ids=None) -> list[float]:
    """What a run does between two steps: train, evaluate a smaller last batch, write a sample."""
    model.train()
    inputs = {"input_ids": IDS, "position_ids": position_ids, "return_logits": False}
    model(**inputs, labels=IDS).loss.backward()
    model.eval()
    losses = []
    for rows in (slice(4), slice(3)):
        positions = None if position_ids is None else position_ids[rows]
        with torch.no_grad():
            inputs = {"input_ids": IDS[rows], "position_ids": positions, "use_cache": False}
            losses.append(model(**inputs, labels=IDS[rows]).loss.item())
    with eager_layers():
        model.generate(IDS[:1], max_new_tokens=3, do_sample=False, pad_token_id=0)
    return losses


@pytest.mark.slow
def test_layers_of_many_ranks_train_evaluate_and_write(graphs):
    """Nine kinds of layers in three situations, where torch's limit is eight graphs in all."""
    ranks = [*range(1, 10), 9, 9, 9]
    model = small_model(
        hidden_size=24,
        intermediate_size=8,
        num_attention_heads=1,
        num_hidden_layers=len(ranks),
        placement="none",
        ranks={"o_proj": ranks},
    )
    expected = train_evaluate_and_write(model)
    compile_layers(model, torch.device("cpu"))
    assert train_evaluate_and_write(model) == pytest.approx(expected, rel=1e-5)
    made = len(graphs)
    assert 3 * 9 <= made < 3 * 12  # equal layers share graphs
    train_evaluate_and_write(model)
    assert len(graphs) == made  # nothing is compiled again


def test_the_situations_of_a_layer_are_within_the_limit(graphs):
    model = small_model(num_hidden_layers=1)
    compile_layers(model, torch.device("cpu"))
    for positions in (None, DOCUMENTS, None, DOCUMENTS):
        train_evaluate_and_write(model, positions)
    assert len(graphs) <= _GRAPHS_PER_LAYER
