"""What happens to real processes on a bad day."""

import contextlib
import json
import math
import os
import shutil
import signal
import time

import pytest
from helpers.runs import (
    Launched,
    assert_same_weights,
    free_port,
    is_listening,
    stop_all,
    torchrun,
    untimed_metrics,
    wait_until,
)

from lpa.train.checkpoint import store
from lpa.train.logging.metrics_file import read_metrics

STEPS = 24

# In one worker: they share runs that take seconds to make.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]


@pytest.fixture(scope="module")
def options(prepared, tiny):
    """Dropout on, two forward passes per step and process, more than an epoch's middle."""
    return [
        *("train", "--data.path", prepared, *tiny, "--train.steps", STEPS),
        *("--train.batch_size", 8, "--train.micro_batch_size", 2, "--checkpoint.every", 6),
        *("--model.resid_pdrop", "0.1", "--train.eval_every", 12, "--train.eval_tokens", 500),
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, options, lpa):
    """Two processes that were never stopped."""
    out = tmp_path_factory.mktemp("two") / "run"
    code, output = torchrun(lpa, 2, *options, "--out", out).finish()
    assert code == 0, output
    return out


def losses(run) -> list[float]:
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


@pytest.fixture(scope="module")
def halfway(tmp_path_factory, options, lpa):
    """By the number of processes that began it, a run of half the steps; and the losses of a whole one."""
    folder = tmp_path_factory.mktemp("halfway")
    # Dropout differs by process, so it is off; and a vocabulary that two can divide.
    options = [*options, "--model.resid_pdrop", "0.0", "--model.vocab_size", 304]
    for processes in (1, 2):
        part = [*options, "--out", folder / str(processes), "--train.stop_at", STEPS // 2]
        if processes == 1:
            finished = lpa(*part)
            assert finished.code == 0, finished.stderr
        else:
            code, output = torchrun(lpa, 2, *part).finish()
            assert code == 0, output
    finished = lpa(*options, "--out", folder / "whole")
    assert finished.code == 0, finished.stderr
    return folder, options


@pytest.mark.parametrize(
    ("first", "then", "layout"),
    [(2, 1, ()), (1, 2, ()), (2, 2, ("--parallel.tensor", 2))],
    ids=["2 to 1", "1 to 2", "shards to tensor parallel"],
)
def test_another_number_of_processes_resumes_with_the_same_samples(
    halfway, tmp_path, lpa, first, then, layout
):
    folder, options = halfway
    run = tmp_path / "run"
    shutil.copytree(folder / str(first), run)
    command = [*options, "--out", run, "--resume", *layout]
    if then == 1:
        finished = lpa(*command)
        assert finished.code == 0, finished.stderr
    else:
        code, output = torchrun(lpa, then, *command).finish()
        assert code == 0, output
    # The same samples in another order of addition; other samples would differ in the second digit.
    assert losses(run) == pytest.approx(losses(folder / "whole"), rel=1e-3)
    assert read_metrics(run)[-2]["tokens"] == read_metrics(folder / "whole")[-2]["tokens"]


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, "step"), (signal.SIGINT, "evaluation"), (signal.SIGTERM, "save")],
)
def test_a_signal_to_one_process_stops_all_with_one_checkpoint(
    straight, options, tmp_path, lpa, number, moment
):
    out = tmp_path / "run"
    launched = torchrun(lpa, 2, *options, "--out", out, *_slow_down(moment))
    try:
        _, second = wait_until(
            lambda: _at(moment, out) and (found := launched.workers())[1:] and found,
            launched.process,
        )
        os.kill(second, number)
        code, output = launched.finish()
    finally:
        stop_all(launched)
    assert code != 0
    assert f"stopped by {number.name} at step" in output
    # torchrun names the code that its processes ended with.
    assert f"exitcode  : {128 + number}" in output
    assert not (out / "final").exists()
    reached = int(output.partition(f"stopped by {number.name} at step ")[2].split(";")[0])
    newest = store.resumable_checkpoints(out)[0]
    assert store.step_of(newest) == reached
    assert not store.unfinished_checkpoints(out)
    code, output = torchrun(
        lpa, 2, *options, "--out", out, *_slow_down(moment), "--resume"
    ).finish()
    assert code == 0, output
    assert output.count("validation perplexity") == 1, "one process speaks for all"
    assert_same_weights(out, straight)
    if moment != "evaluation":  # which is of other tokens there
        assert untimed_metrics(out) == untimed_metrics(straight)


def _slow_down(moment: str) -> tuple:
    """Options that make the moment long enough to hit."""
    if moment == "evaluation":
        return ("--train.eval_every", 10, "--train.eval_tokens", 0)
    return ("--checkpoint.every", 1) if moment == "save" else ()


def _at(moment: str, out) -> bool:
    if moment == "save":
        return any(store.checkpoints_directory(out).glob(".step-*.partial"))
    steps = [record["step"] for record in read_metrics(out)]
    return bool(steps) if moment == "step" else any(step >= 10 for step in steps)


def test_a_second_sigint_ends_at_once(options, tmp_path, lpa):
    out = tmp_path / "run"
    process = lpa.start("-m", "lpa", *options, "--train.steps", 100000, "--out", out)
    wait_until(lambda: read_metrics(out), process)
    process.send_signal(signal.SIGSTOP)  # so that both signals wait for it together
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    output, _ = process.communicate(timeout=30)
    if process.returncode == 130:  # it had stopped in good order before the second came
        assert "stopped by SIGINT" in output
    else:
        assert process.returncode == -signal.SIGINT, output
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("moment", ["step", "save", "asynchronous save"])
def test_when_one_process_is_killed_the_others_end_and_name_it(options, tmp_path, lpa, moment):
    out = tmp_path / "run"
    every_step = ("--checkpoint.every", 1)
    more = {
        "step": (),
        "save": every_step,
        "asynchronous save": (*every_step, "--checkpoint.async_save", "true"),
    }[moment]
    launched = torchrun(lpa, 2, *options, *more, "--train.steps", 100000, "--out", out)

    def reached() -> bool:
        if more:
            return any(store.checkpoints_directory(out).glob(".step-*.partial/*"))
        return bool(read_metrics(out))

    try:
        workers = wait_until(
            lambda: reached() and (found := launched.workers())[1:] and found,
            launched.process,
        )
        began = time.monotonic()
        os.kill(workers[1], signal.SIGKILL)
        code, output = launched.finish()
    finally:
        stop_all(launched)
    assert code != 0
    assert "rank 0 ends, as rank 1 is gone" in output
    assert "src/lpa" not in output, "a line, not a traceback"
    assert time.monotonic() - began < 20, "documented: within 20 seconds"


def test_torchrun_restarts_and_the_run_resumes(straight, options, tmp_path, lpa):
    out = tmp_path / "run"
    launched = torchrun(lpa, 2, *options, "--out", out, options=("--max-restarts", "1"))
    try:
        workers = wait_until(
            lambda: (
                store.resumable_checkpoints(out) and (found := launched.workers())[1:] and found
            ),
            launched.process,
        )
        os.kill(workers[1], signal.SIGKILL)
        code, output = launched.finish()
    finally:
        stop_all(launched)
    assert code == 0, output
    assert_same_weights(out, straight)
    assert untimed_metrics(out) == untimed_metrics(straight)


def test_a_restart_never_touches_a_run_that_was_there_before(straight, options, lpa):
    before = (straight / "metrics.jsonl").stat().st_mtime_ns
    code, output = torchrun(
        lpa, 2, *options, "--out", straight, options=("--max-restarts", "1")
    ).finish()
    assert code != 0
    assert "already holds a run" in output
    assert (straight / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("keep_checkpoints", [True, False])
def test_a_second_launch_with_the_same_id_never_touches_the_run(
    straight, options, tmp_path, lpa, keep_checkpoints
):
    out = tmp_path / "run"
    launch = ("--rdzv-id", "my-run", "--max-restarts", "3")
    code, output = torchrun(
        lpa, 2, *options, "--train.stop_at", 20, "--out", out, options=launch
    ).finish()
    assert code == 0, output
    if not keep_checkpoints:
        shutil.rmtree(store.checkpoints_directory(out))
    before = _content(out)
    code, output = torchrun(lpa, 2, *options, "--out", out, options=launch).finish()
    assert code != 0
    assert output.count("already holds a run") == 1, "a user's mistake is not tried again"
    assert _content(out) == before


def _content(directory) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_sigterm_to_one_process_stops_the_run_where_restarts_are_allowed(options, tmp_path, lpa):
    out = tmp_path / "run"
    launched = torchrun(lpa, 2, *options, "--out", out, options=("--max-restarts", "3"))
    try:
        workers = wait_until(
            lambda: read_metrics(out) and (found := launched.workers())[1:] and found,
            launched.process,
        )
        os.kill(workers[1], signal.SIGTERM)
        code, output = launched.finish()
    finally:
        stop_all(launched)
    assert code != 0
    assert output.count("stopped by SIGTERM at step") == 1
    assert not (out / "final").exists()


def _agent(lpa, options, out, port: int) -> Launched:
    """One torchrun of two, with one process."""
    return torchrun(
        lpa,
        1,
        *options,
        *("--out", out),
        options=(
            *("--nnodes", "2", "--rdzv-id", "my-run", "--max-restarts", "3"),
            *("--rdzv-endpoint", f"localhost:{port}"),
        ),
        # Without it torchrun never tells an agent that joins later where the processes meet.
        environment={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )


@pytest.mark.parametrize("victim", ["worker", "agent"])
def test_two_agents_resume_to_the_same_bits(straight, options, tmp_path, lpa, victim):
    out, port = tmp_path / "run", free_port()
    agents = [_agent(lpa, options, out, port)]
    workers: list[int] = []
    try:
        wait_until(lambda: is_listening(port), agents[0].process)
        agents.append(_agent(lpa, options, out, port))
        workers = wait_until(
            lambda: store.resumable_checkpoints(out) and agents[1].workers(), agents[0].process
        )
        started = (out / ".launch").stat().st_mtime_ns
        if victim == "worker":
            os.kill(workers[0], signal.SIGKILL)
        else:
            agents[1].process.kill()  # and its worker with it
            agents.append(_agent(lpa, options, out, port))  # another comes in its place
        began = time.monotonic()
        wait_until(lambda: (out / ".launch").stat().st_mtime_ns != started, agents[0].process)
        assert time.monotonic() - began < 60
        for launched in (agents[0], agents[-1]):
            code, output = launched.finish()
            assert code == 0, output
    finally:
        stop_all(*agents)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert_same_weights(out, straight)
    assert untimed_metrics(out) == untimed_metrics(straight)


@pytest.mark.parametrize(
    ("what", "action"), [("loss", "stop"), ("gradient", "stop"), ("loss", "skip")]
)
def test_a_number_that_is_none_on_one_rank_never_reaches_the_weights(
    run_ranks, prepared, tmp_path, what, action
):
    run, out = tmp_path / "run", tmp_path / "out.json"
    run.mkdir()
    run_ranks(2, "nonfinite.py", prepared, run, what, action, out)
    endings = [json.loads((tmp_path / f"out.json.{rank}").read_text()) for rank in (0, 1)]
    assert all(ending["finite"] for ending in endings)
    kept = [store.step_of(path) for path in store.list_checkpoints(run)]
    records = read_metrics(run)
    assert all(math.isfinite(value) for record in records for value in record.values())
    if action == "stop":
        assert {ending["step"] for ending in endings} == {4}
        assert endings[1]["ending"] == "reported by another"
        said = endings[0]["ending"]
        assert "step 4" in said
        if what == "loss":  # the fourth step has samples 24 to 31, of which rank 1 has the odd ones
            assert "samples 25, 27 on rank 1 is nan" in said
        else:
            assert "gradient of samples 24 to 31 is not finite" in said
        assert kept == [1, 2, 3]
    else:
        assert {ending["ending"] for ending in endings} == {"finished"}
        assert max(record.get("skipped_steps", 0) for record in records) == 1
        assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 5, 6, 7, 8]
