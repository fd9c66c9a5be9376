"""The rivals' optimizers in runs: which parameters they have, their states, resuming, refusals."""

import pytest
import torch
from helpers.small_models import small_config
from helpers.small_runs import small_trainer

from lpa.errors import UserError
from lpa.model import LPAForCausalLM
from lpa.train.config import OptimConfig
from lpa.train.dry_run import plan_run
from lpa.train.optim.optimizers import build_optimizers, optimizer_kinds, optimizer_state_count

NAMES = ("spectron", "galore", "apollo", "relora")
every_optimizer = pytest.mark.parametrize("name", NAMES)


def settings(name):
    return {"name": name} | ({"restart_every": 2} if name == "relora" else {})


@every_optimizer
def test_every_parameter_is_stepped_once_and_its_states_are_counted(name):
    model = LPAForCausalLM(small_config())
    config = OptimConfig(**settings(name))
    optimizers = build_optimizers(model, config, torch.float32)
    kinds = optimizer_kinds(model, config)
    inside = {p for p in model.model.layers.parameters() if p.ndim == 2}
    assert set(kinds) == inside
    assert set(kinds.values()) == ({"spectron", "muon"} if name == "spectron" else {name})
    model(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizers.step()
    for n, p in model.named_parameters():
        assert not torch.equal(p, before[n]), n
    stepped = [p for member in optimizers.members for g in member.param_groups for p in g["params"]]
    assert len(stepped) == len(set(stepped)) == len(before)
    held = sum(
        value.numel()
        for member in optimizers.members
        for state in member.state.values()
        for value in state.values()
        if value.ndim
    )
    assert held == optimizer_state_count(model, config)


@every_optimizer
def test_a_resumed_run_is_the_run(name, prepared, tmp_path):
    torch.set_num_threads(1)
    fields = {"optim": settings(name)}
    trainer = small_trainer(prepared, out=tmp_path, **fields)
    for _ in range(3):  # beyond the first merge of relora
        trainer.train_step()
    trainer.save()
    resumed = small_trainer(prepared, out=tmp_path, **fields)
    resumed.load(next((tmp_path / "checkpoints").glob("step-*")))
    for each in (trainer, resumed):
        each.train_step()
    ours, theirs = (dict(each.model.named_parameters()) for each in (trainer, resumed))
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@every_optimizer
def test_the_plan_has_its_bytes_and_refuses_several_processes(name, prepared):
    from helpers.small_runs import small_config as run_config

    config = run_config(prepared, optim=settings(name))
    adamw = plan_run(run_config(prepared)).memory_bytes_per_device["optimizer"]
    planned = plan_run(config).memory_bytes_per_device["optimizer"]
    assert planned > adamw if name == "relora" else 0 < planned < adamw
    with pytest.raises(UserError, match=rf"optim\.name: got {name} with several processes"):
        plan_run(config, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"projection_rank": 4}, "optim.projection_rank: got 4; expected null unless"),
        ({"name": "galore", "projection_rank": 0}, "optim.projection_rank: got 0"),
        ({"spectron_bound": "exact"}, "optim.spectron_bound: got exact; expected null unless"),
        ({"name": "relora"}, "optim.restart_every: got None; expected steps from one merge"),
        ({"restart_every": 9}, "optim.restart_every: got 9; expected null unless"),
        ({"name": "spectron", "up_lr_scale": 2.0}, "optim.up_lr_scale: got 2.0; expected 1"),
        ({"name": "spectron", "up_weight_decay": 0.0}, "optim.down_weight_decay: got None"),
    ],
)
def test_settings_that_an_optimizer_does_not_have_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        OptimConfig(**fields)


@pytest.mark.parametrize("model", [{"placement": "none"}, {"low_rank_method": "cola"}])
def test_spectron_is_refused_without_plain_pairs(model, prepared):
    from helpers.small_runs import small_config as run_config

    config = OptimConfig(name="spectron")
    with pytest.raises(
        UserError, match=r"optim\.name: got spectron; expected a model with low-rank"
    ):
        build_optimizers(LPAForCausalLM(small_config(**model)), config, torch.float32)
    with pytest.raises(
        UserError, match=r"optim\.name: got spectron; expected a model with low-rank"
    ):
        plan_run(run_config(prepared, model=model, optim={"name": "spectron"}))


def test_a_run_that_would_end_before_relora_restarts_is_refused(prepared):
    from helpers.small_runs import small_config as run_config

    steps = run_config(prepared).train.steps
    with pytest.raises(UserError, match=rf"optim\.restart_every: got {steps}; expected fewer"):
        run_config(prepared, optim={"name": "relora", "restart_every": steps})
