"""What survives when a save goes wrong: real files, real signals, a real full disk."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers.small_runs import small_config, small_trainer
from safetensors import safe_open
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.utils.data import DataLoader

from lpa.errors import LPAWarning, UserError
from lpa.model import LPAForCausalLM
from lpa.train.checkpoint import store
from lpa.train.checkpoint.checkpointer import Checkpointer
from lpa.train.distributed.process_group import World
from lpa.train.run import train


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def advance(trainer, steps: int) -> None:
    for _ in range(steps):
        trainer.train_step()


def started(data: Path, out: Path, **fields):
    torch.set_num_threads(1)
    return small_trainer(data, out=out, steps=10, **fields)


def die_at(stage: str) -> None:
    """Kill this very process when the save reaches a stage."""

    def kill(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(function, before: bool):
        def wrapper(*arguments, **keywords):
            if before:
                kill()
            result = function(*arguments, **keywords)
            kill()
            return result

        return wrapper

    if stage == "directory made":
        store.create_partial = dying(store.create_partial, before=False)
    elif stage == "tensors written":
        store.file_checksum = dying(store.file_checksum, before=True)
    elif stage == "manifest written":
        real = store.os.replace

        def replace(source, target):
            if Path(source).suffix == ".partial":
                kill()
            return real(source, target)

        store.os.replace = replace
    elif stage == "renamed":
        store._write_latest = dying(store._write_latest, before=True)
    elif stage == "remembered":
        store.delete_old_checkpoints = dying(store.delete_old_checkpoints, before=True)
    elif stage == "old one half deleted":
        store.shutil.rmtree = dying(lambda path: os.remove(next(Path(path).glob("*.s*"))), False)


@pytest.mark.parametrize(
    ("stage", "survives"),
    [
        ("directory made", 2),
        ("tensors written", 2),
        ("manifest written", 2),
        ("renamed", 2),  # complete, but not yet the one to go on from
        ("remembered", 3),
        ("old one half deleted", 3),
    ],
)
def test_a_kill_at_any_stage_of_a_save_leaves_a_whole_checkpoint(
    prepared, tmp_path, stage, survives
):
    trainer = started(prepared, tmp_path, checkpoint={"keep_latest_k": 1})
    advance(trainer, 2)
    trainer.save()
    at_two = weights(trainer)
    advance(trainer, 1)
    at_three = weights(trainer)
    child = os.fork()
    if child == 0:
        die_at(stage)
        saver = started(
            prepared, tmp_path, checkpoint={"keep_latest_k": 1}
        )  # threads do not survive a fork
        saver.load(store.resumable_checkpoints(tmp_path)[0])
        advance(saver, 1)
        saver.save()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the save went through"
    assert os.WTERMSIG(status) == signal.SIGKILL
    fresh = started(prepared, tmp_path)
    (path, *_) = store.resumable_checkpoints(tmp_path)
    fresh.load(path)
    assert fresh.state.step == survives
    expected = at_two if survives == 2 else at_three
    for name, weight in weights(fresh).items():
        assert torch.equal(weight, expected[name]), name
    # And the next save goes through, whatever was left behind.
    advance(fresh, 1)
    fresh.save()
    assert store.step_of(store.resumable_checkpoints(tmp_path)[0]) == survives + 1
    assert not store.unfinished_checkpoints(tmp_path)


def test_an_asynchronous_save_holds_the_step_it_names(prepared, tmp_path):
    trainer = started(prepared, tmp_path, checkpoint={"async_save": True, "every": 1})
    advance(trainer, 3)
    expected = weights(trainer)
    trainer.save()
    advance(trainer, 5)  # at once
    trainer.checkpointer.wait()
    path = store.checkpoint_path(tmp_path, 3)
    (shard,) = path.glob("*.safetensors")
    with safe_open(shard, "pt") as file:
        for name, weight in expected.items():
            assert torch.equal(file.get_tensor(f"weights/{name}"), weight), name
    assert store.read_manifest(path).state.step == 3
    changed = weights(trainer)
    assert any(not torch.equal(changed[name], expected[name]) for name in expected)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("async_save", [False, True])
def test_a_full_disk_is_reported_and_spares_the_last_checkpoint(prepared, small_disk, async_save):
    out = small_disk / "run"
    trainer = started(
        prepared, out, checkpoint={"keep_latest_k": 1, "async_save": async_save, "every": 1}
    )
    advance(trainer, 1)
    trainer.save()
    trainer.checkpointer.wait()
    expected = weights(trainer)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "others").write_bytes(b"x" * max(0, free - 100_000))
    advance(trainer, 1)

    def save() -> None:
        trainer.save()
        trainer.checkpointer.wait()

    with pytest.raises(UserError) as error:
        save()
    assert "No space left on device" in str(error.value)
    assert "the last complete checkpoint is" in str(error.value)
    assert "step-00000001" in str(error.value)
    assert "\n" not in str(error.value)
    fresh = started(prepared, out)
    fresh.load(store.resumable_checkpoints(out)[0])
    for name, weight in weights(fresh).items():
        assert torch.equal(weight, expected[name]), name


@pytest.fixture
def two_checkpoints(prepared, tmp_path):
    """A run stopped at step 4 with checkpoints of steps 2 and 4."""
    config = small_config(
        prepared, checkpoint={"every": 2}, stop_at=4, threads=1, eval_every=0, steps=6
    )
    out = tmp_path / "run"
    train(config, out)
    return config, out


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [flip, lambda f: os.truncate(f, f.stat().st_size - 1), lambda f: os.truncate(f, 0)],
    ids=["flipped byte", "truncated", "empty"],
)
def test_a_damaged_checkpoint_is_passed_over_loudly_unless_it_was_asked_for(
    two_checkpoints, damage
):
    config, out = two_checkpoints
    good, bad = store.list_checkpoints(out)
    (shard,) = bad.glob("*.safetensors")
    damage(shard)
    config.train.stop_at = None
    with pytest.raises(store.DamagedCheckpointError, match=shard.name):
        train(config, out, resume=bad)
    with pytest.warns(LPAWarning, match="resuming from the checkpoint before it") as warnings:
        result = train(config, out, resume=True)
    assert any(str(shard) in str(warning.message) for warning in warnings)
    assert result.steps == 6
    assert good.exists() or store.list_checkpoints(out)


def test_pickles_beside_the_tensors_are_refused_and_not_opened(two_checkpoints):
    config, out = two_checkpoints
    path = store.list_checkpoints(out)[-1]
    # What torch.distributed.checkpoint would unpickle, here one that leaves a mark.
    mark = out / "PWNED"
    (path / ".metadata").write_bytes(b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    with pytest.raises(store.DamagedCheckpointError, match=r"\.metadata: does not belong"):
        train(config, out, resume=path)
    assert not mark.exists()


def test_a_checkpoint_of_another_run_is_refused(two_checkpoints, tmp_path):
    config, out = two_checkpoints
    with pytest.raises(UserError, match=r"--resume: got .*; expected a checkpoint of the run"):
        train(config, out, resume=tmp_path / "step-00000002")
    with pytest.raises(UserError, match="no such checkpoint"):
        train(config, out, resume=store.checkpoint_path(out, 99))


def test_resuming_from_an_earlier_checkpoint_leads_to_the_same_end(two_checkpoints):
    config, out = two_checkpoints
    config.train.stop_at = None
    first = store.list_checkpoints(out)[0]
    result = train(config, out, resume=first)
    assert result.steps == 6


def test_other_data_or_settings_are_refused_unless_allowed(two_checkpoints, tmp_path):
    from lpa.data import bundled_corpus, prepare

    config, out = two_checkpoints
    config.train.stop_at = None
    other = tmp_path / "other"
    prepare(
        [bundled_corpus("validation")],
        other,
        vocab_size=300,
        validation=[bundled_corpus("validation")],
        test_fraction=0.1,
    )
    config.data.path = other
    with pytest.raises(UserError) as error:
        train(config, out, resume=True)
    assert "data.tokens was" in str(error.value)
    assert "data.tokenizer was" in str(error.value)
    config.optim.lr = 5e-4
    with pytest.raises(UserError, match=r"optim\.lr was 0\.001, now 0\.0005"):
        train(config, out, resume=True, allow_change=["data.tokens", "data.tokenizer"])
    allowed = ["data.tokens", "data.tokenizer", "optim.lr"]
    assert train(config, out, resume=True, allow_change=allowed).steps == 6


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_damaged_manifest_is_moved_aside_when_its_step_comes_again(two_checkpoints, damage):
    config, out = two_checkpoints
    bad = store.list_checkpoints(out)[-1]
    damage(bad / "manifest.json")
    config.train.stop_at = None
    with pytest.warns(LPAWarning, match=r"is not a complete checkpoint; renamed to .*damaged-1"):
        assert train(config, out, resume=True).steps == 6
    assert bad.with_name(f"{bad.name}.damaged-1").is_dir()
    assert [store.step_of(path) for path in store.list_checkpoints(out)][-1] == 6


def test_a_checkpoint_from_before_any_update_is_loaded(prepared, tmp_path):
    first = started(prepared, tmp_path / "run")
    first.save()
    first.checkpointer.wait()
    again = started(prepared, tmp_path / "run")
    again.load(store.list_checkpoints(tmp_path / "run")[0])
    assert not any(member.state for member in again.optimizers.members)
    for trainer in (first, again):
        trainer.train_step()
    for name, weight in weights(first).items():
        assert torch.equal(weight, weights(again)[name]), name


@pytest.mark.parametrize("async_save", [False, True])
def test_a_run_on_the_cpu_resumes_to_the_same_bits_where_a_gpu_is_visible(
    prepared, tmp_path, monkeypatch, async_save
):
    fields = {"model": {"resid_pdrop": 0.1}, "checkpoint": {"async_save": async_save}}
    first = started(prepared, tmp_path, **fields)
    advance(first, 1)
    first.save()
    first.checkpointer.wait()
    advance(first, 1)
    touched = show_gpu(monkeypatch)
    again = started(prepared, tmp_path, **fields)
    again.load(store.list_checkpoints(tmp_path)[0])
    advance(again, 1)
    for name, weight in weights(first).items():
        assert torch.equal(weight, weights(again)[name]), name
    again.save()
    again.checkpointer.wait()
    assert touched == []


def test_a_run_that_moves_from_the_cpu_to_a_gpu_keeps_its_random_numbers(
    prepared, tmp_path, monkeypatch
):
    trainer = started(prepared, tmp_path)
    trainer.save()
    expected = torch.get_rng_state()
    touched = show_gpu(monkeypatch)
    checkpointer = Checkpointer(
        tmp_path,
        World(0, 1, torch.device("cuda")),
        trainer.model,
        trainer.optimizers,
        rng_stream=0,
        keep_latest_k=1,
        async_save=False,
    )
    torch.manual_seed(7)
    checkpointer.load(store.list_checkpoints(tmp_path)[0])
    assert torch.equal(torch.get_rng_state(), expected)
    assert touched == ["get_rng_state"]  # which was not saved


def show_gpu(monkeypatch) -> list[str]:
    """Let torch say that there is a GPU; which of its functions are called."""
    touched: list[str] = []

    def get_rng_state() -> torch.Tensor:
        touched.append("get_rng_state")
        return torch.zeros(16, dtype=torch.uint8)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda _: touched.append("set_rng_state"))
    monkeypatch.setattr(DataLoader, "__init__", without_pinning(DataLoader.__init__, touched))
    return touched


def without_pinning(initialize, touched: list[str]):
    """Pinning needs a GPU, so it is noted and left out."""

    def wrapper(self, *arguments, pin_memory=False, **keywords):
        touched.extend(["pin_memory"] * pin_memory)
        initialize(self, *arguments, **keywords)

    return wrapper


def test_a_run_that_ends_by_its_loss_has_completed_what_it_saved(prepared, tmp_path, monkeypatch):
    config = small_config(
        prepared, steps=6, checkpoint={"every": 2, "async_save": True}, loggers=[]
    )
    slow, forward = store.file_checksum, LPAForCausalLM.forward
    calls = []

    def slowly(path):
        time.sleep(0.5)
        return slow(path)

    def spoiled(self, *arguments, **keywords):
        output = forward(self, *arguments, **keywords)
        calls.append(1)
        if len(calls) == 3:
            output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(store, "file_checksum", slowly)
    monkeypatch.setattr(LPAForCausalLM, "forward", spoiled)
    with pytest.raises(UserError, match="training: step 3"):
        train(config, tmp_path / "run")
    assert [store.step_of(path) for path in store.list_checkpoints(tmp_path / "run")] == [2]


@pytest.mark.parametrize("in_background", [True, False])
def test_only_a_save_in_the_background_copies_the_state(
    prepared, tmp_path, monkeypatch, in_background
):
    copies = []
    stage = HuggingFaceStorageWriter.stage

    def counted(self, *arguments, **keywords):
        copies.append(1)
        return stage(self, *arguments, **keywords)

    monkeypatch.setattr(HuggingFaceStorageWriter, "stage", counted)
    config = small_config(
        prepared, steps=2, checkpoint={"every": 1, "async_save": in_background}, loggers=[]
    )
    train(config, tmp_path / "run")
    assert bool(copies) == in_background
