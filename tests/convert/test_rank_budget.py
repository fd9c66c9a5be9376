import gc
import weakref

import pytest
import torch
from helpers.small_models import small_llama, small_model
from transformers import LlamaConfig, LlamaForCausalLM

import lpa
from lpa.convert import rank_budget
from lpa.convert.rank_budget import RankBudget, ranks_for_budget
from lpa.errors import UserError

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


@pytest.mark.parametrize("fields", [{"attention_bias": True}, {"mlp_bias": True}])
def test_no_budget_for_a_cache_without_latents(fields):
    model = small_llama(**fields)
    found = {n: m for n, m in model.named_modules() if n.endswith("_proj")}
    with pytest.raises(UserError, match=r"--budget kv: got a LlamaForCausalLM, whose cache would"):
        ranks_for_budget(
            model, found, RankBudget("kv", 0.5), None, "svd", on_progress=lambda *_: None
        )


def test_a_live_model_has_latents_in_its_cache_where_it_is_ours():
    with pytest.raises(
        UserError, match=r"budget: got kv with a live LlamaForCausalLM, which keeps"
    ):
        lpa.factorize(small_llama(), budget="kv=0.5")
    model = small_model(placement="none")
    lpa.factorize(model, budget="kv=0.5")
    ranks = [model.config.projection_rank("v_proj", layer) for layer in (0, 1)]
    assert sum(ranks) <= 32  # half of two layers with values 32 wide
    assert model.config.projection_rank("q_proj", 0) is None
