import gc
import weakref

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lpa.convert import rank_budget
from lpa.convert.rank_budget import RankBudget, ranks_for_budget

LAYERS = 5


@pytest.mark.parametrize("criterion", ["spectra", "loss"])
def test_moments_of_one_layer_are_held_at_a_time(monkeypatch, criterion):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 50}
    config = LlamaConfig(**sizes, num_hidden_layers=LAYERS, num_attention_heads=2)
    model = LlamaForCausalLM(config).eval()
    found = {n: m for n, m in model.named_modules() if n.endswith("_proj")}
    made, alive = [], []

    def recorded(*arguments):
        gc.collect()
        alive.append(sum(moment() is not None for moment in made))
        groups = input_moments(*arguments)
        made.extend(weakref.ref(group.moment) for group in groups)
        return groups

    input_moments = rank_budget.input_moments
    monkeypatch.setattr(rank_budget, "input_moments", recorded)
    windows = torch.randint(50, (2, 40))
    budget = RankBudget("parameters", 0.5, criterion)
    ranks = ranks_for_budget(model, found, budget, windows, "svd-llm", on_progress=lambda *_: None)
    assert ranks.keys() <= found.keys()
    assert len(made) == 4 * LAYERS  # of q, k and v; of o; of gate and up; of down
    # When a layer begins, at most the last moment of the layer before.
    assert len(alive) == LAYERS
    assert max(alive) <= 1
