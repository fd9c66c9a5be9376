"""Resuming with another model or optimizer: what fits is filled, the rest starts fresh or is refused."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from helpers.runs import torchrun
from helpers.small_runs import small_config, small_trainer
from safetensors.torch import load_file

from lpa.errors import LPAWarning, UserError
from lpa.train.run import train

STOP = 4
GALORE = {"name": "galore", "projection_rank": 4}
APOLLO = {"name": "apollo", "projection_rank": 4}
RELORA = {"name": "relora", "projection_rank": 4, "restart_every": 3}
ADAMW = {"name": "adamw"}


@pytest.fixture
def change(prepared, tmp_path):
    """Stop a run at step 4 and resume it with other fields, all of them allowed."""
    out = tmp_path / "run"

    def resume(before: dict, after: dict, *, stop_at: int = STOP) -> Path:
        fixed = {"steps": 8, "threads": 1, "eval_every": 0, "loggers": []}
        train(small_config(prepared, **fixed, **before, stop_at=stop_at), out)
        changed = [
            f"{section}.{name}"
            for section in before.keys() | after.keys()
            for name in before.get(section, {}).keys() | after.get(section, {}).keys()
        ]
        train(small_config(prepared, **fixed, **after), out, resume=True, allow_change=changed)
        return out

    return resume


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            {"rank": 4},
            {"rank": 8},
            r"has model\.layers\.0\.self_attn\.\w+\.\w+\.weight of shape \(\d+, \d+\); .* has \(\d+, \d+\);",
        ),
        (
            {"num_hidden_layers": 2},
            {"num_hidden_layers": 3},
            r"lacks model\.layers\.2\.\S+, which the model of this configuration has, of shape \(",
        ),
        (
            {"num_hidden_layers": 2},
            {"num_hidden_layers": 1},
            r"has model\.layers\.1\.\S+ of shape \(.*\), which the model of this configuration lacks",
        ),
        (
            {"placement": "attention"},
            {"placement": "all"},
            r"lacks model\.layers\.0\.mlp\.\S+, which",
        ),
    ],
)
def test_weights_of_other_names_or_shapes_are_refused_in_one_line(change, before, after, message):
    with pytest.raises(UserError, match=rf"^--resume: .*step-00000004: {message}") as error:
        change({"model": before}, {"model": after})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ADAMW, GALORE),
        (GALORE, ADAMW),
        (ADAMW, APOLLO),
        (APOLLO, ADAMW),
        (GALORE, APOLLO),  # states of the same shapes, of gradients projected otherwise
        (GALORE, GALORE | {"projection_rank": 6}),
        ({"name": "muon"}, ADAMW),
        (ADAMW, {"name": "muon"}),
        ({"name": "muon"}, {"name": "spectron"}),
        (RELORA, ADAMW),
    ],
)
def test_optimizer_states_that_do_not_fit_start_fresh_with_a_warning(change, before, after):
    message = r"optimizer states of model\.layers\.0\.\S+ and \d+ more .*; they start fresh"
    with pytest.warns(LPAWarning, match=message):
        out = change({"optim": before}, {"optim": after})
    weights = load_file(out / "final" / "model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in weights.values())


def test_full_rank_moments_of_a_projected_gradient_are_not_taken_for_adamw_s(change):
    full = GALORE | {"projection_rank": 10**6}
    with pytest.warns(LPAWarning, match="start fresh"):
        change({"optim": full}, {"optim": ADAMW})


def test_what_newly_trains_starts_fresh_with_a_warning(change):
    with pytest.warns(LPAWarning, match=r"optimizer states of model\.embed_tokens\.weight and"):
        change({"optim": {"trainable": "factors"}}, {"optim": {"trainable": "all"}})


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, {}), ({"lr": 1e-3}, {"lr": 2e-3}), (GALORE, GALORE), (RELORA, RELORA)],
)
def test_states_that_fit_are_taken_up_without_a_word(change, before, after):
    with warnings.catch_warnings():
        warnings.simplefilter("error", LPAWarning)
        change({"optim": before}, {"optim": after})


def test_a_checkpoint_from_before_any_update_has_no_states_to_warn_of(prepared, tmp_path):
    small_trainer(prepared, out=tmp_path, optim=ADAMW).save()
    with warnings.catch_warnings():
        warnings.simplefilter("error", LPAWarning)
        small_trainer(prepared, out=tmp_path, optim=RELORA).load(
            tmp_path / "checkpoints" / "step-00000000"
        )


@pytest.mark.parametrize("before", [ADAMW, RELORA | {"projection_rank": 6}])
def test_relora_does_not_start_within_a_run(change, before):
    with pytest.raises(
        UserError, match=r"--resume: .*expected optim\.name, .*\S+ as the run began"
    ):
        change({"optim": before}, {"optim": RELORA})


@pytest.mark.parametrize(("before", "after"), [(3, 6), (6, 3)])
def test_restarts_of_relora_keep_their_period_once_one_is_over(change, before, after):
    message = f"--resume: optim.restart_every was {before}, now {after}"
    with pytest.raises(UserError, match=message):
        change(
            {"optim": RELORA | {"restart_every": before}},
            {"optim": RELORA | {"restart_every": after}},
        )


def test_the_first_period_of_relora_may_become_longer(change):
    change({"optim": RELORA | {"restart_every": 5}}, {"optim": RELORA | {"restart_every": 6}})


@pytest.mark.slow
def test_several_processes_refuse_in_one_line_and_start_fresh_with_one_warning(
    lpa, prepared, tiny, tmp_path
):
    out = tmp_path / "run"
    options = ["train", "--data.path", prepared, *tiny, "--model.vocab_size", 304]
    options += ["--train.steps", 6, "--out", out]
    code, output = torchrun(lpa, 2, *options, "--train.stop_at", 4).finish()
    assert code == 0, output
    resume = [*options, "--resume", "--allow-change"]
    code, output = torchrun(lpa, 2, *resume, "model.rank", "--model.rank", 4).finish()
    assert code != 0
    lines = [line for line in output.splitlines() if "lpa: error: " in line]
    assert len(lines) == 1, output
    assert re.search(
        r"step-00000004: has model\.layers\.0\.\S+ of shape \(8, 32\); .*\(4, 32\)", lines[0]
    )
    code, output = torchrun(lpa, 2, *resume, "optim.name", "--optim.name", "muon").finish()
    assert code == 0, output
    assert output.count("they start fresh") == 1
    weights = load_file(out / "final" / "model.safetensors")
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())
