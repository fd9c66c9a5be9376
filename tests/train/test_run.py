"""Run directories from the first command to the last: finished, extended, interrupted, held by another."""

import json
import os
import re
import shutil
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from helpers.runs import wait_until
from helpers.small_runs import small_config
from safetensors.torch import load_file

from lpa.data import bundled_corpus, prepare
from lpa.errors import LPAWarning, UserError
from lpa.storage.locks import lock_directory, read_holder
from lpa.storage.outputs import files_of
from lpa.storage.run_directory import DAMAGED_METRICS_FILE, METRICS_FILE
from lpa.train import run as run_module
from lpa.train.checkpoint.store import list_checkpoints
from lpa.train.config import RunConfig
from lpa.train.distributed.process_group import World
from lpa.train.logging.metrics_file import read_metrics
from lpa.train.result import RunInterruptedError, RunResult, RunStopped
from lpa.train.run import train
from lpa.train.run_table import list_runs
from lpa.train.trainer import Trainer

STEPS = 4


@pytest.fixture
def config(prepared):
    """Makes a configuration of a few steps: `config(steps=6, checkpoint={…})`."""

    def make(**fields):
        defaults = {
            "steps": STEPS,
            "log_every": 1,
            "eval_every": 2,
            "eval_tokens": 64,
            "loggers": [],
        }
        return small_config(prepared, **(defaults | fields))

    return make


def validations(run: Path) -> list[int]:
    return [record["step"] for record in read_metrics(run) if "validation_loss" in record]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def assert_equal_weights(run: Path, other: Path) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, prepared) -> Path:
    """A run of twice `STEPS` that nothing interrupted."""
    out = tmp_path_factory.mktemp("straight") / "run"
    fields = {"steps": STEPS, "log_every": 1, "eval_every": 2, "eval_tokens": 64, "loggers": []}
    train(small_config(prepared, **fields), out)
    return out


@pytest.mark.parametrize("every", [0, 100])
def test_weights_outlive_a_model_that_cannot_be_written(tmp_path, config, straight, every):
    run = tmp_path / "run"
    settings = config(checkpoint={"every": every})
    assert isinstance(train(config(checkpoint={"every": every}, stop_at=2), run), RunStopped)
    (run / "final").write_text("in the way")
    last = run / "checkpoints" / f"step-{STEPS:08d}"
    message = rf"final: the model could not be written .*checkpoint is {re.escape(str(last))}, so --resume"
    with pytest.raises(UserError, match=message):
        train(settings, run, resume=True)
    assert last in list_checkpoints(run)
    (run / "final").unlink()
    assert isinstance(train(settings, run, resume=True), RunResult)
    assert_equal_weights(run, straight)
    assert validations(run) == [2, STEPS]
    assert bool(list_checkpoints(run)) == bool(every)


def test_the_best_model_that_cannot_be_written_stops_nothing(tmp_path, config, straight):
    run = tmp_path / "run"
    settings = config(checkpoint={"keep_best": True})
    train(config(checkpoint={"keep_best": True}, stop_at=1), run)
    (run / "best").write_text("in the way")
    with pytest.warns(LPAWarning, match=r"best: the model could not be written \(.*is a file"):
        result = train(settings, run, resume=True)
    assert_equal_weights(run, straight)
    assert result.best_step is None  # it would be that of a model that is nowhere


@pytest.mark.parametrize("began_with", ["float32", "bfloat16"])
def test_auto_is_decided_once_and_a_resumed_run_keeps_it(tmp_path, config, monkeypatch, began_with):
    decide = "lpa.train.run.resolve_dtype"
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(config(dtype=began_with), straight)
    monkeypatch.setattr(decide, lambda name, device: getattr(torch, began_with))
    train(config(dtype="auto", stop_at=2), resumed)
    assert RunConfig.load(resumed / "config.yaml").train.dtype == began_with
    # The next process may find itself on another CPU.
    other = "float32" if began_with == "bfloat16" else "bfloat16"
    monkeypatch.setattr(decide, lambda name, device: getattr(torch, other))
    train(config(dtype="auto"), resumed, resume=True)
    assert RunConfig.load(resumed / "config.yaml").train.dtype == began_with
    assert_equal_weights(resumed, straight)
    with pytest.raises(UserError, match=f"train.dtype was {began_with}, now {other}"):
        train(config(dtype=other, steps=STEPS + 1), resumed, resume=True)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["bfloat16"] * 3, "bfloat16"),
        (["float32"] * 2, "float32"),
        (["bfloat16", "float32"], "float32"),
    ],
)
def test_processes_on_unlike_machines_compute_in_one_precision(
    tmp_path, config, monkeypatch, found, expected
):
    def gather(value, group=None):
        return found if value in ("float32", "bfloat16") else [value]

    monkeypatch.setattr("lpa.train.run.all_gather_objects", gather)
    train(config(dtype="auto", steps=1), tmp_path / "run")
    assert RunConfig.load(tmp_path / "run" / "config.yaml").train.dtype == expected


def test_a_run_without_its_model_is_not_finished(tmp_path, config, straight):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    shutil.rmtree(run / "final")
    assert isinstance(train(config(), run, resume=True), RunResult)
    assert_equal_weights(run, straight)
    assert validations(run) == [2, STEPS]


def test_a_finished_run_stays_as_it_is(tmp_path, config, straight):
    before = {name: (straight / name).stat().st_mtime_ns for name in files_of(straight)}
    assert train(config(), straight, resume=True) == RunResult.load(straight)
    assert {name: (straight / name).stat().st_mtime_ns for name in files_of(straight)} == before


def test_a_finished_run_without_checkpoints_stays_when_its_launch_restarts(
    lpa, prepared, tiny, tmp_path
):
    """As where torchrun restarts all processes since one was killed after the end of the run."""
    run = tmp_path / "run"
    command = ["train", "--data.path", prepared, *tiny, "--train.steps", 3, "--out", run, "--json"]
    launch = {"TORCHELASTIC_RUN_ID": "my-run"}  # of whoever starts both commands
    first = lpa(*command, "--checkpoint.every", 0, environment=launch)
    assert first.code == 0, first.stderr
    assert list_checkpoints(run) == []
    before = {name: (run / name).stat().st_mtime_ns for name in files_of(run)}
    again = lpa(*command, "--checkpoint.every", 0, environment=launch)
    assert again.code == 0, again.stderr
    assert again.json == first.json
    assert {name: (run / name).stat().st_mtime_ns for name in files_of(run)} == before


def test_a_run_that_was_removed_in_part_can_be_overwritten(tmp_path, config, straight, monkeypatch):
    """The process that removes it is killed before each of its calls."""
    calls = 0
    while True:
        run = tmp_path / str(calls)
        shutil.copytree(straight, run)
        child = os.fork()
        if child == 0:
            run_module.Trainer = BuiltNothing
            kill_before_call(calls)
            try:
                train(config(), run, overwrite=True)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        run_module._check_run_directory(run, overwrite=True)
        calls += 1
    assert os.waitstatus_to_exitcode(status) == 0
    assert calls > 10


class BuiltNothing:
    """A trainer of which the process needs no more than that it was built."""

    initial_weights = None

    def __init__(self, *_, **__):
        pass

    def run(self):
        os._exit(0)


def kill_before_call(number: int) -> None:
    """Kill this process before that one of the calls that remove or rename."""
    before = iter(range(number))

    def dying(function):
        def wrapper(*arguments, **keywords):
            if next(before, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return wrapper

    for name in ("unlink", "rmdir", "replace"):
        setattr(os, name, dying(getattr(os, name)))


def test_an_extended_run_that_is_stopped_finishes(tmp_path, config, straight):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    longer = {"steps": 2 * STEPS, "optim": {"schedule": "wsd", "warmup_steps": 2}}
    allowed = ["train.steps", "optim.schedule"]
    first = train(config(**longer, stop_at=6), run, resume=True, allow_change=allowed)
    assert first == RunStopped(6, "train.stop_at")
    second = train(config(**longer), run, resume=True)
    assert isinstance(second, RunResult)
    assert second.steps == RunResult.load(run).steps == 2 * STEPS
    assert not torch.equal(weights(run)["lm_head.weight"], weights(straight)["lm_head.weight"])


def test_an_extended_run_keeps_the_evaluation_of_its_first_end(tmp_path, config):
    """That of the whole split, where a run of so many steps has none or owes none there."""
    run = tmp_path / "run"
    train(config(steps=3), run)
    before = read_metrics(run)
    train(config(steps=5), run, resume=True, allow_change=["train.steps"])
    assert read_metrics(run)[: len(before)] == before
    assert validations(run) == [2, 3, 4, 5]


def test_leftovers_of_killed_processes_go(tmp_path, config):
    run = tmp_path / "run"
    train(config(stop_at=2), run)
    for name in (".final.1a2b3c4d.tmp", ".best.1a2b3c4d.tmp.old"):
        (run / name).mkdir()
        (run / name / "model.safetensors").write_text("half")
    (run / ".metrics.jsonl.123.tmp").write_text("half")
    train(config(), run, resume=True)
    assert [name for name in files_of(run) if ".tmp" in name] == []
    train(config(), run, overwrite=True)


@pytest.mark.parametrize("damage", ["zeroed", "a bad line", "not UTF-8"])
def test_damaged_metrics_are_reported_and_set_aside(tmp_path, config, damage):
    run = tmp_path / "run"
    train(config(stop_at=3), run)
    content = (run / METRICS_FILE).read_bytes()
    first, _, rest = content.partition(b"\n")
    damaged = {
        "zeroed": bytes(len(content)),
        "a bad line": first + b"\nnull\n" + rest,
        "not UTF-8": first + b'\n{"step": "\xff"}\n' + rest,
    }[damage]
    (run / METRICS_FILE).write_bytes(damaged)
    with pytest.warns(
        LPAWarning, match=rf"line \d: .* the damaged file is now {run / DAMAGED_METRICS_FILE}"
    ):
        train(config(), run, resume=True)
    assert (run / DAMAGED_METRICS_FILE).read_bytes() == damaged
    kept = [1] if damage != "zeroed" else []
    assert sorted({record["step"] for record in read_metrics(run)}) == [*kept, STEPS]
    train(config(), run, overwrite=True)


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_two_trainings_do_not_share_a_directory(tmp_path, config, how):
    run = tmp_path / "run"
    train(config(stop_at=2), run)
    before = {name: (run / name).read_bytes() for name in files_of(run)}
    said = f"--out {run}: is in use by process {os.getpid()} on "
    with lock_directory(run), pytest.raises(UserError, match=said):
        train(config(), run, **how)
    assert {name: (run / name).read_bytes() for name in files_of(run)} == before


@pytest.mark.parametrize(
    "name", ["notes.txt", "checkpoints/mine.txt", "final/notes.txt", "step-1/x"]
)
def test_a_file_of_the_user_is_never_removed(tmp_path, config, straight, name):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("mine")
    with pytest.raises(UserError, match=r"holds .*, which this command did not write"):
        train(config(), run, overwrite=True)
    assert (run / name).read_text() == "mine"
    assert RunResult.load(run).steps == STEPS


def test_a_directory_that_holds_a_configuration_alone_is_not_overwritten(
    tmp_path, config, straight
):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(straight / "config.yaml", run)
    (run / "data.json").write_text(json.dumps("mine"))
    with pytest.raises(UserError, match="is not a training run that this command wrote"):
        train(config(), run, overwrite=True)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "data.json"]


@pytest.mark.parametrize("kind", ["a link", "the working directory", "empty"])
def test_the_directory_stays_where_it_is(tmp_path, config, straight, monkeypatch, kind):
    target = tmp_path / "disk" / "run"
    target.mkdir(parents=True)
    inode, out = target.stat().st_ino, target
    if kind == "a link":
        out = tmp_path / "link"
        out.symlink_to(target)
    elif kind == "the working directory":
        monkeypatch.chdir(target)
        out = Path(".")
    train(config(), out)
    train(config(), out, overwrite=True)
    assert target.stat().st_ino == inode
    assert out.is_symlink() == (kind == "a link")
    assert_equal_weights(target, straight)
    assert [path.name for path in target.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_all_files_follow_the_umask(tmp_path, config, umask):
    before = os.umask(umask)
    try:
        train(config(checkpoint={"every": 2, "keep_best": True}), tmp_path / "run")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in files}
    assert {name: oct(mode) for name, mode in modes.items() if mode != 0o666 & ~umask} == {}


def test_a_finished_run_trains_again_from_the_checkpoint_that_is_named(config, tmp_path):
    run = tmp_path / "run"
    settings = config(steps=6, checkpoint={"every": 2, "keep_latest_k": 9})
    train(settings, run)
    before = weights(run)
    settings.optim.lr = 0.05
    settings.train.stop_at = 4
    first = list_checkpoints(run)[0]
    stopped = train(settings, run, resume=first, allow_change=["optim.lr"])
    assert stopped == RunStopped(4, "train.stop_at")
    [row] = list_runs([run])
    assert row.state == "checkpoint at step 4 of 6"  # whatever the abandoned future reached
    settings.train.stop_at = None
    assert train(settings, run, resume=True).steps == 6
    assert any(not torch.equal(value, weights(run)[name]) for name, value in before.items())


def test_fewer_steps_than_are_done_are_refused(config, tmp_path):
    run = tmp_path / "run"
    train(config(steps=6, stop_at=4), run)
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"train\.steps: got 3; expected at least 4"):
        train(config(steps=3), run, resume=True, allow_change=["train.steps"])
    assert (run / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_with_data_workers_leaves_a_checkpoint(
    lpa, prepared, tiny, tmp_path, number
):
    run = tmp_path / "run"
    process = lpa.start(
        *("-m", "lpa", "train", "--data.path", prepared, *tiny, "--out", run),
        *("--train.steps", 1_000_000, "--train.log_every", 1, "--data.num_workers", 2),
    )
    wait_until(lambda: read_metrics(run), process)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert len(list_checkpoints(run)) == 1
    assert output.count("stopping with a checkpoint") == (number == signal.SIGINT)


def test_allow_change_is_refused_without_resume(config, tmp_path, lpa):
    with pytest.raises(UserError, match="--allow-change: works only with --resume"):
        train(config(), tmp_path / "run", allow_change=["optim.lr"])
    finished = lpa("train", "--data.path", "data", "--dry-run", "--allow-change", "optim.lr")
    assert (finished.code, finished.stderr.count("\n")) == (2, 1)
    assert "--allow-change: works only with --resume" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_signal_in_the_last_step_is_not_lost(tmp_path, prepared, config, monkeypatch):
    """Where no evaluation comes after it that could be interrupted."""
    data, run = tmp_path / "data", tmp_path / "run"
    prepare([bundled_corpus("test")], data, vocab_size=300, validation_fraction=0)
    settings = small_config(data, steps=STEPS, loggers=[])
    train_step = Trainer.train_step

    def signaled(self):
        if self.state.step == STEPS - 1:
            signal.raise_signal(signal.SIGTERM)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", signaled)
    with pytest.raises(RunInterruptedError) as stopped:
        train(settings, run)
    assert (stopped.value.signal_number, stopped.value.step) == (signal.SIGTERM, STEPS)
    assert not (run / "result.json").exists()
    monkeypatch.undo()
    assert isinstance(train(settings, run, resume=True), RunResult)


def test_a_directory_that_a_machine_has_for_itself_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_SHARED_SECONDS", 0.2)
    world = World(1, 2, torch.device("cpu"))
    with lock_directory(tmp_path / "of-rank-0"):
        holder = read_holder(tmp_path / "of-rank-0")
    monkeypatch.setattr(run_module, "all_gather_objects", lambda own: [holder, own])
    own = tmp_path / "of-rank-1"
    message = "rank 1 does not see what rank 0 wrote there; expected a directory that all machines"
    with pytest.raises(UserError, match=message):
        run_module._check_shared(own, world)  # there is none
    own.mkdir()
    for text in ("", "{", json.dumps({"host": "another", "process": 1, "since": "yesterday"})):
        (own / ".lpa.holder.json").write_text(text)
        with pytest.raises(UserError, match=message):
            run_module._check_shared(own, world)
    (own / ".lpa.holder.json").write_text(json.dumps(asdict(holder)))
    run_module._check_shared(own, world)
