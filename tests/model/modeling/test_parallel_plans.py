"""`tp_plan="auto"` and pipeline parallelism of transformers, on two processes beside one."""

import pytest
from helpers.small_models import small_config, small_model
from transformers import DistributedConfig

import lpa
from lpa.model import LPAForCausalLM

# In one worker: they share what takes long to make.
pytestmark = pytest.mark.xdist_group("parallel plans")

SPLIT = {
    "attention": {},
    "dense": {"placement": "none"},
    "all, grouped queries": {"placement": "all", "num_key_value_heads": 2},
    "mixed layers": {"placement": "all", "dense_layers": [0], "ranks": {"k_proj": None}},
    "tied head": {"tie_word_embeddings": True},
    "paper": {"decoder_type": "paper", "placement": "all"},
    "paper, dense": {"decoder_type": "paper", "placement": "none"},
    "cola": {"low_rank_method": "cola", "placement": "all"},
    "sltrain": {"low_rank_method": "sltrain"},
}
STAGES = ("attention", "mixed layers", "tied head")


@pytest.fixture(scope="module")
def results(run_ranks, tmp_path_factory):
    directory = tmp_path_factory.mktemp("parallel")
    for name, fields in SPLIT.items():
        small_model(vocab_size=96, **fields).save_pretrained(directory / "tp" / name)
    for name in STAGES:
        small_model(vocab_size=96, **SPLIT[name]).save_pretrained(directory / "pp" / name)
    return run_ranks(2, "transformers_parallel.py", directory, directory / "out.json")


@pytest.mark.parametrize("name", SPLIT)
def test_two_processes_compute_what_one_does(results, name):
    found = dict(results[f"tp/{name}"])
    split = found.pop("split")
    assert set(found) == {
        *("logits, True", "logits, False", "loss, True", "loss, False", "gradients"),
        *("generated, dynamic", "generated, latent"),
    }
    assert max(found.values()) < 1e-4, found  # relative; sums in another order
    assert bool(split) == (name != "sltrain")


def test_of_a_pair_the_wide_factor_is_split(results):
    for name in ("attention", "mixed layers"):
        attention = [n for n in results[f"tp/{name}"]["split"] if "self_attn" in n]
        prefix = "model.layers.1.self_attn"
        k_proj = "k_proj" if name == "mixed layers" else "k_proj.up"
        assert attention == sorted(
            f"{prefix}.{n}.weight" for n in (k_proj, "o_proj.down", "q_proj.up", "v_proj.up")
        )


@pytest.mark.parametrize("name", STAGES)
def test_two_stages_compute_what_one_process_does(results, name):
    assert results[f"pp/{name}"]["logits"] < 1e-5


def test_stages_that_would_add_positions_twice_are_refused():
    model = small_model(decoder_type="paper")
    with pytest.raises(lpa.UserError, match="pp_size: got 2; expected 1 with decoder_type paper"):
        model._resolve_parallel_plans(DistributedConfig(pp_size=2))


@pytest.mark.parametrize("name", SPLIT)
def test_each_rule_of_a_plan_is_for_something(name):
    config = small_config(**SPLIT[name])
    model = LPAForCausalLM(config)
    names = {n.replace(".0.", ".*.").replace(".1.", ".*.") for n, _ in model.named_modules()}
    assert set(model.tp_plan) <= names
    assert set(model.pp_plan) <= names
    assert "base_model_tp_plan" not in config.to_dict()
