"""Models of other low-rank projections: counted, trained, resumed, saved, merged or refused."""

import pytest
import torch
from helpers.small_models import small_config, small_model
from helpers.small_runs import small_trainer
from torch.utils.flop_counter import FlopCounterMode

from lpa.convert.merge import merge_to_llama
from lpa.errors import UserError
from lpa.eval.analysis.projections import list_projections
from lpa.lowrank import CoLALinear, SLTrainLinear
from lpa.model import LPAForCausalLM
from lpa.model.cost import forward_flops_per_token, parameter_count, sparse_support_bytes
from lpa.model.plan import kv_cache_bytes, plan_model
from lpa.train.config import OptimConfig
from lpa.train.optim.optimizers import build_optimizers

METHODS = {"cola": CoLALinear, "sltrain": SLTrainLinear}
every_method = pytest.mark.parametrize("method", METHODS)


def token_ids() -> torch.Tensor:
    return torch.arange(2 * 24).view(2, 24) % 97


@every_method
@pytest.mark.parametrize("placement", ["attention", "ffn", "all"])
def test_counts_are_those_of_the_model(method, placement):
    model = small_model(low_rank_method=method, placement=placement)
    kinds = [type(m) for m in model.modules() if isinstance(m, METHODS[method])]
    assert len(kinds) == 2 * {"attention": 4, "ffn": 3, "all": 7}[placement]
    assert parameter_count(model.config) == model.num_parameters()
    model.set_attn_implementation("eager")  # whose products the counter sees
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(token_ids(), use_cache=False)
    forming = 0
    if method == "sltrain":  # once per pass, whatever the tokens
        forming = sum(
            2 * m.rank * m.in_features * m.out_features
            for m in model.modules()
            if isinstance(m, SLTrainLinear)
        )
    assert counter.get_total_flops() - forming == 48 * forward_flops_per_token(model.config, 24)
    cache = kv_cache_bytes(model.config, 4)
    assert cache["latent"] == cache["plain"]


@every_method
def test_saved_and_loaded_it_is_the_same_function(method, tmp_path):
    model = small_model(low_rank_method=method, placement="all")
    model.save_pretrained(tmp_path)
    loaded = LPAForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model(token_ids()).logits, loaded(token_ids()).logits)
        greedy = loaded.generate(token_ids()[:, :4], max_new_tokens=6, do_sample=False)
        latent = loaded.generate(
            token_ids()[:, :4], max_new_tokens=6, do_sample=False, cache_implementation="latent"
        )
    assert torch.equal(greedy, latent)


def test_sltrain_merges_and_cola_says_why_not():
    model = small_model(low_rank_method="sltrain", placement="all")
    merged = merge_to_llama(model)
    with torch.no_grad():
        ours, theirs = model(token_ids()).logits, merged(token_ids()).logits
    # One rounding of each matrix and another order of sums, through two layers.
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="merge: low_rank_method cola has a SiLU"):
        merge_to_llama(small_model(low_rank_method="cola"))


@every_method
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_is_the_run(method, optimizer, prepared, tmp_path):
    torch.set_num_threads(1)
    fields = {
        "model": {"low_rank_method": method, "placement": "all"},
        "optim": {"name": optimizer},
    }
    trainer = small_trainer(prepared, out=tmp_path, **fields)
    for _ in range(2):
        trainer.train_step()
    trainer.save()
    resumed = small_trainer(prepared, out=tmp_path, **fields)
    resumed.load(next((tmp_path / "checkpoints").glob("step-*")))
    for each in (trainer, resumed):
        assert each.train_step().loss > 0
    ours, theirs = (dict(each.model.named_parameters()) for each in (trainer, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@every_method
@pytest.mark.slow
def test_shards_train_as_one_process(method, prepared, run_ranks, tmp_path):
    import json

    fields = {"model": {"low_rank_method": method, "placement": "all"}}
    layouts = [[1, 2, 1]] + ([[1, 1, 2]] if method == "cola" else [])
    arguments = (prepared, json.dumps(layouts), 3, json.dumps(fields))
    results = run_ranks(2, "layouts.py", *arguments, tmp_path / "two.json")
    (alone,) = run_ranks(
        1, "layouts.py", prepared, "[[1, 1, 1]]", 3, json.dumps(fields), tmp_path / "one.json"
    )
    for result in results:
        assert result["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert result["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    if method == "sltrain":
        from lpa.train.distributed.parallelize import check_tensor_parallel_size

        with pytest.raises(UserError, match=r"parallel\.tensor: got 2; expected 1 with"):
            check_tensor_parallel_size(small_config(low_rank_method="sltrain"), 2)


@every_method
def test_what_needs_a_plain_product_refuses(method):
    model = small_model(low_rank_method=method)
    with pytest.raises(UserError, match=r"optim\.low_rank_decay: got product"):
        build_optimizers(model, OptimConfig(low_rank_decay="product"), torch.float32)
    with pytest.raises(UserError, match=METHODS[method].__name__):
        list_projections(model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"low_rank_method": "lora"},
            "low_rank_method: got 'lora'; expected null, cola or sltrain",
        ),
        ({"sparse_density": 0.1}, "sparse_density: got 0.1; expected null without"),
        ({"low_rank_method": "sltrain", "sparse_density": 0}, "got 0; expected above 0"),
        ({"low_rank_method": "sltrain", "sparse_density": 1.5}, "got 1.5; expected above 0"),
        ({"low_rank_method": "sltrain", "decoder_type": "paper"}, "expected llama"),
        (
            {"low_rank_method": "cola", "placement": "none"},
            "low_rank_method: got 'cola' where all projections are dense; expected null",
        ),
        ({"low_rank_method": "sltrain", "dense_layers": [0, 1]}, "where all projections are dense"),
    ],
)
def test_bad_values_are_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        small_config(**fields)


def test_the_sparse_matrix_decays_as_a_matrix_does():
    model = small_model(low_rank_method="sltrain")
    optimizers = build_optimizers(model, OptimConfig(name="muon", weight_decay=0.3), torch.float32)
    decays = {
        parameter: group["weight_decay"]
        for member in optimizers.members
        for group in member.param_groups
        for parameter in group["params"]
    }
    for module in model.modules():
        if isinstance(module, SLTrainLinear):
            assert decays[module.sparse_values] == decays[module.up.weight] == 0.3


def test_plans_count_the_places_of_the_sparse_entries():
    config = small_config(low_rank_method="sltrain", placement="all")
    model = LPAForCausalLM(config)
    held = sum(m.support.nbytes for m in model.modules() if isinstance(m, SLTrainLinear))
    assert sparse_support_bytes(config) == held > 0
    planned = plan_model(config, seq_len=24).memory_bytes_per_device["weights"]
    assert planned == 4 * model.num_parameters() + held
