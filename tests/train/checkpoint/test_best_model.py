"""`best/` and what a run says of it are of one model, whatever happens between."""

import json
from pathlib import Path

import pytest
from helpers.small_runs import small_config

from lpa.data import bundled_corpus, prepare
from lpa.errors import LPAWarning, UserError
from lpa.storage.run_directory import BEST_EVALUATION_FILE, CHECKPOINT_MANIFEST_FILE
from lpa.train.checkpoint import store
from lpa.train.checkpoint.store import list_checkpoints
from lpa.train.logging.metrics_file import read_metrics
from lpa.train.run import train
from lpa.train.trainer import Trainer

# With this rate no evaluation is better than one before.
RISING = {"lr": 20.0}


@pytest.fixture
def config(prepared):
    """Makes a configuration of a few steps: `config(steps=6, checkpoint={…})`."""

    def make(**fields):
        defaults = {"log_every": 1, "eval_every": 2, "eval_tokens": 64, "loggers": []}
        return small_config(prepared, **(defaults | {"steps": 8} | fields))

    return make


@pytest.fixture
def stopped(config, tmp_path) -> Path:
    """A run of eight steps that stopped after four, the best of which is the last."""
    run = tmp_path / "run"
    train(config(checkpoint={"keep_best": True}, stop_at=4), run)
    assert kept_step(run) == 4
    return run


def kept_step(run: Path) -> int:
    """The step of the model in `best/`, which is on its card too."""
    step = json.loads((run / "best" / BEST_EVALUATION_FILE).read_text())["step"]
    assert f" in {step} steps" in (run / "best" / "README.md").read_text()
    return step


def validation_losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of each evaluation on record."""
    records = read_metrics(run)
    return [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r]


def test_the_best_model_of_a_first_end_stays_the_best_of_a_longer_run(tmp_path, config):
    run = tmp_path / "run"
    best = {"checkpoint": {"keep_best": True}, "eval_tokens": 0}
    first = train(config(**best, steps=5, eval_every=4), run)
    assert first.best_step == 5
    result = train(
        config(**best, steps=8, eval_every=4, optim={"lr": 20.0}),
        run,
        resume=True,
        allow_change=["train.steps", "optim.lr"],
    )
    losses = dict(validation_losses(run))
    assert [step for step, _ in validation_losses(run)] == [4, 5, 8]
    assert result.best_step == min(losses, key=losses.__getitem__) == 5
    assert " in 5 steps" in (run / "best" / "README.md").read_text()


def test_the_best_loss_is_one_of_the_part_that_is_evaluated(tmp_path, config):
    run = tmp_path / "run"
    best = {"checkpoint": {"keep_best": True}, "optim": {"lr": 0.02}, "steps": 8}
    train(config(**best, eval_tokens=1, stop_at=4), run)
    [kept] = store.resumable_checkpoints(run)
    state = store.read_manifest(kept).state
    assert state.best_eval_tokens == 1
    result = train(config(**best, eval_tokens=0), run, resume=True)
    losses = {step: loss for step, loss in validation_losses(run) if step > 4}
    assert result.best_step == min(losses, key=losses.__getitem__)
    assert f" in {result.best_step} steps" in (run / "best" / "README.md").read_text()


def test_the_best_model_of_an_abandoned_future_goes(tmp_path, config):
    run = tmp_path / "run"
    every = {"every": 2, "keep_latest_k": 9, "keep_best": True}
    train(config(steps=8, checkpoint=every, stop_at=6), run)
    first = list_checkpoints(run)[0]
    settings = config(steps=8, checkpoint=every, optim={"lr": 1e-5})
    result = train(settings, run, resume=first, allow_change=["optim.lr"])
    assert result.best_step > 2
    assert f" in {result.best_step} steps" in (run / "best" / "README.md").read_text()


def test_best_models_that_are_asked_for_later_are_kept_from_then_on(tmp_path, config):
    run = tmp_path / "run"
    rising = {"optim": {"lr": 0.3}, "steps": 8}
    train(config(**rising, stop_at=4), run)
    result = train(config(**rising, checkpoint={"keep_best": True}), run, resume=True)
    assert result.best_step > 4
    assert (run / "best" / "config.json").exists()


def test_best_models_without_a_validation_split_are_refused(tmp_path, config):
    data = tmp_path / "data"
    prepare([bundled_corpus("test")], data, vocab_size=300, validation_fraction=0)
    settings = config(checkpoint={"keep_best": True})
    settings.data.path = data
    with pytest.raises(UserError, match=r"checkpoint.keep_best: got true; expected data with a v"):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_best_model_that_is_no_longer_kept_says_of_which_step_it_is(config, stopped):
    unkept = config(stop_at=6)
    train(unkept, stopped, resume=True)
    assert newest_state(stopped)["best_step"] == 6
    assert kept_step(stopped) == 4
    settings = config(checkpoint={"keep_best": True}, optim=RISING)
    result = train(settings, stopped, resume=True, allow_change=["optim.lr"])
    assert result.best_step == kept_step(stopped) == 8  # the one of step 6 is nowhere


def test_a_best_model_that_is_no_longer_kept_stays_while_it_is_the_best(config, stopped):
    result = train(config(optim=RISING), stopped, resume=True, allow_change=["optim.lr"])
    assert result.best_step == kept_step(stopped) == 4


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_best_model_of_steps_that_were_lost_is_not_taken_for_the_best(
    config, tmp_path, monkeypatch, keep_best
):
    run, train_step = tmp_path / "run", Trainer.train_step

    def dying(self):
        if self.state.step == 7:
            raise KeyboardInterrupt  # at which nothing is saved
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(config(checkpoint={"every": 4, "keep_best": True}), run)
    monkeypatch.undo()
    assert (newest_state(run)["best_step"], kept_step(run)) == (4, 6)
    settings = config(checkpoint={"every": 4, "keep_best": keep_best}, optim=RISING)
    result = train(settings, run, resume=True, allow_change=["optim.lr"])
    if keep_best:
        assert result.best_step == kept_step(run) == 6  # that of the new future
    else:
        assert (result.best_step, kept_step(run)) == (4, 6)


def test_losses_of_two_validation_splits_are_not_compared(config, stopped, tmp_path):
    (tmp_path / "other.txt").write_text("zyx wvu 0123456789\n" * 40)
    settings = config(checkpoint={"keep_best": True})
    settings.data.path = tmp_path / "other"
    prepare(
        [bundled_corpus("test")],
        settings.data.path,
        vocab_size=300,
        validation=[tmp_path / "other.txt"],
        test_fraction=0.1,
    )
    with pytest.warns(LPAWarning, match=r"validation split is not that of the best loss.* step 4"):
        result = train(settings, stopped, resume=True)
    losses = dict(validation_losses(stopped))
    assert losses[4] < min(losses[6], losses[8]), "of other text, which is harder"
    assert result.best_step == kept_step(stopped) > 4


def test_a_run_of_an_earlier_version_keeps_its_best_model(config, stopped, recwarn):
    (stopped / "best" / BEST_EVALUATION_FILE).unlink()
    manifest = list_checkpoints(stopped)[0] / CHECKPOINT_MANIFEST_FILE
    content = json.loads(manifest.read_text())["content"]
    del content["state"]["best_data"]
    manifest.write_text(json.dumps({"sha256": store.content_digest(content), "content": content}))
    settings = config(checkpoint={"keep_best": True}, optim=RISING)
    result = train(settings, stopped, resume=True, allow_change=["optim.lr"])
    assert result.best_step == 4
    assert " in 4 steps" in (stopped / "best" / "README.md").read_text()
    assert [warning for warning in recwarn if "validation" in str(warning.message)] == []


def newest_state(run: Path) -> dict:
    manifest = store.resumable_checkpoints(run)[0] / CHECKPOINT_MANIFEST_FILE
    return json.loads(manifest.read_text())["content"]["state"]
