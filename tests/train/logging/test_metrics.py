import importlib.util
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lpa.errors import UserError
from lpa.train.logging import loggers
from lpa.train.logging.loggers import LOGGERS, _GuardedLogger, check_loggers
from lpa.train.logging.metrics import MetricsLog
from lpa.train.logging.metrics_file import read_metrics

# Logs steps FIRST … LAST of a run that is resumed from step FIRST - 1, in its own process as training is.
LOG = """
import os, signal, sys
from pathlib import Path
from lpa.train.logging.metrics import MetricsLog
run, logger, first, last, end = sys.argv[1:]
log = MetricsLog(Path(run), step=int(first) - 1, loggers=[logger], config={"optim": {"lr": 0.5}})
for step in range(int(first), int(last) + 1):
    log.write(step, loss=10.0 / step)
log.write(int(last), validation_loss=0.5)
if end == "die":
    import time
    time.sleep(2)  # Trackio writes in the background, twice a second
    os.kill(os.getpid(), signal.SIGKILL)
log.close()
print("done")
"""


def log_steps(run: Path, logger: str, first: int, last: int, end: str = "close", **environment):
    return subprocess.run(
        [sys.executable, "-c", LOG, str(run), logger, str(first), str(last), end],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(run.parent), **environment},
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def needs(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed: pip install 'lpa[{name}]'")


def test_records_after_the_resumed_step_are_dropped(tmp_path):
    first = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        first.write(step, loss=1.0 / step)
    first.close()
    second = MetricsLog(tmp_path, step=20)
    second.write(30, loss=0.5)
    second.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [
        (10, 0.1),
        (20, 0.05),
        (30, 0.5),
    ]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20, 30]
    assert events.Scalars("loss")[-1].value == 0.5


def test_json_lines_alone(tmp_path):
    log = MetricsLog(tmp_path, loggers=[])
    log.write(1, loss=2.0)
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_unknown_logger_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(
        UserError,
        match=r"^train.loggers: got 'mlflow'; expected one of tensorboard, wandb, trackio$",
    ):
        MetricsLog(tmp_path / "run", loggers=["tensorboard", "mlflow"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_that_is_not_installed_is_named_with_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # so Python finds it no more
    with pytest.raises(UserError, match=rf"{name} is not installed.*lpa\[{name}\]"):
        check_loggers([name])


def test_a_folder_of_that_name_is_not_an_installation(tmp_path, monkeypatch):
    (tmp_path / "left_behind").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(loggers, "LOGGERS", ("left_behind",))
    with pytest.raises(UserError, match="left_behind is not installed"):
        loggers.check_loggers(["left_behind"])


@needs("wandb")
def test_wandb_offline_resumes_the_same_run(tmp_path):
    run = tmp_path / "run"
    killed = log_steps(run, "wandb", 1, 6, "die", WANDB_MODE="offline")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    ident = json.loads((run / "loggers.json").read_text())["wandb"]
    again = log_steps(run, "wandb", 5, 8, WANDB_MODE="offline")
    assert again.stdout == "done\n", again.stderr
    assert json.loads((run / "loggers.json").read_text())["wandb"] == ident
    assert [r["step"] for r in read_metrics(run) if "loss" in r] == [1, 2, 3, 4, 5, 6, 7, 8]
    # What the killed process had in memory is lost, so the file of the last one has to hold it all.
    last = max((run / "wandb").glob(f"offline-run-*-{ident}"))
    assert wandb_steps(last / f"run-{ident}.wandb") == [1, 2, 3, 4, 5, 6, 7, 8]


def wandb_steps(path: Path) -> list[int]:
    """The steps with a loss in W&B's own file, which a killed process may have left unfinished."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    steps = []
    for data in leveldb_records(path.read_bytes()[7:]):  # after a magic number
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            break
        if "loss" in {item.key or item.nested_key[0] for item in record.history.item}:
            steps.append(record.history.step.num)
    return steps


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, of which none splits a header."""
    position, parts = 0, b""
    while position + 7 <= len(log):
        left = 2**15 - (position + 7) % 2**15
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, position)
        parts += log[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield parts
            parts = b""


@needs("wandb")
def test_wandb_without_a_network_neither_ends_nor_holds_up_a_run(tmp_path):
    run = tmp_path / "run"
    finished = log_steps(
        *(run, "wandb", 1, 3),
        WANDB_MODE="online",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",  # where nothing listens
        WANDB_INIT_TIMEOUT="3",
    )
    assert finished.stdout == "done\n", finished.stderr
    assert "logging offline" in finished.stderr
    assert [r["step"] for r in read_metrics(run) if "loss" in r] == [1, 2, 3]
    (store,) = (run / "wandb").glob("offline-run-*/*.wandb")
    assert wandb_steps(store) == [1, 2, 3]


@needs("trackio")
def test_trackio_resumes_the_same_run(tmp_path):
    run, store = tmp_path / "run", tmp_path / "store"
    killed = log_steps(run, "trackio", 1, 6, "die", TRACKIO_DIR=str(store))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = log_steps(run, "trackio", 5, 8, TRACKIO_DIR=str(store))
    assert again.stdout == "done\n", again.stderr
    (database,) = store.glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    assert sorted(step for _, step, text in rows if '"loss"' in str(text)) == list(range(1, 9))


# Logs so many steps while no file may become larger than so many bytes.
FULL = """
import resource, sys
from pathlib import Path
from lpa.train.logging.metrics import MetricsLog
run, limit, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
log = MetricsLog(run)
for step in range(1, steps + 1):
    log.write(step, loss=1.5)
log.close()
print("done")
"""


@pytest.mark.parametrize(("limit", "steps"), [(30, 1), (4096, 150)], ids=["opening", "writing"])
def test_an_event_file_that_cannot_be_written_ends_no_run(tmp_path, limit, steps):
    run = tmp_path / "run"
    run.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(run), str(limit), str(steps)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "done\n", done.stderr
    message = "LPAWarning: tensorboard: [Errno 27] File too large; the run continues without it"
    assert done.stderr.count(message) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert [record["step"] for record in read_metrics(run)] == list(range(1, steps + 1))


def test_events_of_one_second_are_in_separate_files_and_in_order(tmp_path):
    for step in range(4):
        log = MetricsLog(tmp_path, step=step)
        log.write(step + 1, loss=float(step), lr=0.5)
        log.close()
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 4
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 0.0),
        (2, 1.0),
        (3, 2.0),
        (4, 3.0),
    ]
    assert len(events.Scalars("lr")) == 4


class Service:
    """What W&B and Trackio are to a resumed run: they have the steps up to one, and take none back."""

    last_step = 10

    def __init__(self):
        self.sent = []

    def log(self, step, values):
        assert step > self.last_step
        self.sent.append((step, dict(values)))


@pytest.mark.parametrize("pending", [True, False])
def test_an_evaluation_that_a_resume_makes_up_for_reaches_the_service(pending):
    service = Service()
    logger = _GuardedLogger("wandb", lambda: service, evaluation_pending=pending)
    evaluation = {"validation_loss": 3.0}
    logger.log(8, {"loss": 4.0})
    logger.log(10, {"loss": 3.5})
    logger.log(10, evaluation)
    logger.log(10, evaluation)  # there is one of a step
    logger.log(20, {"loss": 3.0})
    expected = [(11, evaluation)] if pending else []
    assert service.sent == [*expected, (20, {"loss": 3.0})]
