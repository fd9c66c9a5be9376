from pathlib import Path

import pytest
import yaml

from lpa.errors import UserError
from lpa.train.checkpoint.resume_checks import check_same_config, check_unchanged, read_saved_config
from lpa.train.config import CheckpointConfig, DataConfig, OptimConfig, RunConfig, TrainConfig


def run_config(**sections) -> RunConfig:
    return RunConfig(**({"data": DataConfig(Path("data"))} | sections))


def saved(**sections) -> dict:
    return yaml.safe_load(run_config(**sections).to_yaml())


def test_a_run_resumes_with_its_own_configuration_alone():
    before = saved(train=TrainConfig(steps=60))
    check_same_config(before, run_config(train=TrainConfig(steps=60)))
    with pytest.raises(UserError) as error:
        check_same_config(
            before, run_config(train=TrainConfig(steps=90, seed=1), optim=OptimConfig(lr=3e-3))
        )
    for difference in (
        "train.steps was 60, now 90",
        "train.seed was 0, now 1",
        "optim.lr was 0.001, now 0.003",
        "--allow-change",
    ):
        assert difference in str(error.value)


def test_where_a_run_stops_and_what_it_keeps_may_change():
    before = saved(train=TrainConfig(stop_at=30))
    check_same_config(before, run_config(checkpoint=CheckpointConfig(every=7, keep_latest_k=9)))


def test_what_is_allowed_may_change_and_nothing_else():
    before = saved(optim=OptimConfig(lr=1e-3))
    after = run_config(optim=OptimConfig(lr=2e-3, beta2=0.99))
    with pytest.raises(UserError) as error:
        check_same_config(before, after, allowed=["optim.lr"])
    assert "optim.beta2 was 0.95, now 0.99" in str(error.value)
    assert "optim.lr was" not in str(error.value)
    check_same_config(before, after, allowed=["optim.lr", "optim.beta2"])


def test_a_field_that_there_was_not_yet_had_its_default():
    full = saved()
    for section, fields in full.items():
        for name in fields:
            before = {**full, section: {n: v for n, v in fields.items() if n != name}}
            check_same_config(before, run_config())
    del full["optim"]["beta2"]
    with pytest.raises(UserError, match=r"optim.beta2 was 0.95, now 0.9[; ]"):
        check_same_config(full, run_config(optim=OptimConfig(beta2=0.9)))


def test_a_field_of_another_version_may_be_allowed():
    before = saved()
    before["optim"]["nesterov"] = True
    with pytest.raises(UserError, match=r"optim.nesterov was True, now None"):
        check_same_config(before, run_config())
    check_same_config(before, run_config(), allowed=["optim.nesterov"])


def test_a_field_to_allow_must_exist():
    with pytest.raises(
        UserError, match=r"--allow-change: got optim.speed; expected fields such as"
    ):
        check_same_config(saved(), run_config(), allowed=["optim.speed"])


def test_other_tokens_are_refused_field_by_field():
    fields = {"data.tokens": ("aa", "bb"), "data.tokenizer": ("cc", "dd")}
    with pytest.raises(UserError) as error:
        check_unchanged(fields, allowed=["data.tokens"])
    assert "data.tokenizer was cc, now dd" in str(error.value)
    assert "data.tokens was" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.system ['touch PWNED']", "is not YAML"),
        ("train: !!python/object/apply:os.system ['touch PWNED']", "is not YAML"),
        ("train: {steps: 1", "is not YAML"),
        ("- a list", "got .'a list'.; expected a mapping"),
        ("train: 3", "train: got 3; expected a mapping"),
    ],
)
def test_a_configuration_that_is_no_plain_yaml_is_refused_and_runs_nothing(
    text, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"config\.yaml: {message}"):
        read_saved_config(path)
    assert not (tmp_path / "PWNED").exists()


def test_the_length_of_a_run_and_of_a_step_may_be_said_in_another_unit():
    data = DataConfig(Path("data"), seq_len=128)
    by_tokens = TrainConfig(tokens=128 * 8 * 60, batch_tokens=128 * 8)
    by_steps = TrainConfig(steps=60, batch_size=8)
    for first, then in ((by_tokens, by_steps), (by_steps, by_tokens)):
        before = saved(data=data, train=first)
        check_same_config(before, run_config(data=data, train=then))
    longer = run_config(data=data, train=TrainConfig(tokens=128 * 8 * 90, batch_size=8))
    with pytest.raises(UserError, match=r"train\.steps was 60, now 90"):
        check_same_config(saved(data=data, train=by_tokens), longer)
