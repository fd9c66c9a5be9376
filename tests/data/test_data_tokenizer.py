"""Prepared data whose tokenizer is missing, damaged or of other data are refused by all that read it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.small_runs import small_config, small_trainer

from lpa.data import prepare
from lpa.data.manifest import Manifest
from lpa.data.stats import sample_documents, verify_data
from lpa.data.tokenizer import load_data_tokenizer, verify_tokenizer
from lpa.errors import UserError
from lpa.eval.minimal_pairs.pairs import pairs_from_data
from lpa.study import run_study
from lpa.train.config import DataConfig, ModelConfig, RunConfig
from lpa.train.dry_run import plan_run
from lpa.train.run import train
from lpa.train.trainer import Trainer


@pytest.fixture(scope="module")
def other(prepared, tmp_path_factory) -> Path:
    """A tokenizer of as many tokens, learned from other text."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "a.txt").write_text("".join(f"zyx wvu {n * n} qpo\n" for n in range(2000)))
    prepare([folder / "a.txt"], folder / "data", vocab_size=300, boundary="line")
    return folder / "data" / "tokenizer"


@pytest.fixture
def data(prepared, tmp_path, monkeypatch) -> Path:
    """A copy, by a relative path: of `data/tokenizer` the hub could be asked. Studies of it run nothing."""
    monkeypatch.setattr(run_study, "run_jobs", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(prepared, Path("data"))


def change_settings(tokenizer: Path, **fields: object) -> None:
    path = tokenizer / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def replace_by_a_file(tokenizer: Path) -> None:
    shutil.rmtree(tokenizer)
    tokenizer.write_text("")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "data/tokenizer: has no tokenizer.json; expected the"),
    "a file": (replace_by_a_file, "data/tokenizer: has no tokenizer.json; expected the"),
    "no tokenizer.json": (
        lambda tokenizer: (tokenizer / "tokenizer.json").unlink(),
        "data/tokenizer: has no tokenizer.json; expected the tokenizer that `lpa prepare` wrote",
    ),
    "a damaged tokenizer.json": (
        lambda tokenizer: (tokenizer / "tokenizer.json").write_text("{"),
        "tokenizer data/tokenizer: cannot be loaded",
    ),
    "no settings": (
        lambda tokenizer: (tokenizer / "tokenizer_config.json").unlink(),
        "tokenizer data/tokenizer: has no end-of-text token",
    ),
    "another end of text": (
        lambda tokenizer: change_settings(tokenizer, eos_token="a"),
        "data/tokenizer/tokenizer_config.json: the end-of-text token is 65; expected 0",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tokenizer_is_one_line(data, damage):
    manifest = Manifest.load(data)
    verify_tokenizer(data, manifest)
    harm, message = DAMAGES[damage]
    harm(data / "tokenizer")
    with pytest.raises(UserError) as error:
        verify_tokenizer(data, manifest)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_what_the_encoding_does_not_depend_on_may_change(data):
    change_settings(data / "tokenizer", chat_template="{{ messages }}", model_max_length=77)
    assert load_data_tokenizer(data, Manifest.load(data)).model_max_length == 77


READERS: dict[str, Callable[[Path, Path], object]] = {
    "train": lambda data, run: small_trainer(data),
    "train --dry-run": lambda data, run: plan_run(small_config(data)),
    "train --dry-run --model.from": lambda data, run: plan_run(
        RunConfig(DataConfig(data, seq_len=32), ModelConfig(from_=run / "final"))
    ),
    "data show": lambda data, run: sample_documents(data),
    "eval pairs": lambda data, run: next(pairs_from_data(data, None)),
    "study": lambda data, run: run_study.run_study(
        "placement", Path("out"), scale="tiny", data=data
    ),
    "study --dry-run": lambda data, run: run_study.plan_study("placement", scale="tiny", data=data),
}


@pytest.mark.parametrize("reader", READERS)
def test_the_tokenizer_of_other_data_is_refused(data, other, run, reader):
    shutil.copytree(other, data / "tokenizer", dirs_exist_ok=True)
    with pytest.raises(
        UserError, match=r"data/tokenizer: SHA-256 of the tokenizer is .*; expected .*…, that of"
    ):
        READERS[reader](data, run)
    assert not Path("out").exists()


@pytest.mark.parametrize("reader", READERS)
def test_data_without_a_tokenizer_are_refused_before_the_hub_is_asked(data, run, reader):
    shutil.rmtree(data / "tokenizer")
    with pytest.raises(UserError, match=r"data/tokenizer: has no tokenizer\.json; expected"):
        READERS[reader](data, run)


def test_verification_names_a_tokenizer_of_other_data(data, other):
    shutil.copytree(other, data / "tokenizer", dirs_exist_ok=True)
    [problem] = verify_data(data)
    assert problem.startswith("data/tokenizer: SHA-256 of the tokenizer is ")


def test_a_run_resumes_with_data_that_were_moved(data):
    train(small_config(data, steps=2, checkpoint={"every": 1}), Path("run"))
    shutil.rmtree("run/final")
    Path("run/result.json").unlink()
    moved = data.rename("moved")
    train(small_config(moved, steps=2, checkpoint={"every": 1}), Path("run"), resume=True)
    assert Path("run/final/tokenizer.json").exists()


@pytest.fixture
def in_a_step(monkeypatch) -> Callable[[Callable[[], object]], None]:
    """Do something in each step of the runs of a test."""
    step = Trainer.forward_backward

    def do(work: Callable[[], object]) -> None:
        monkeypatch.setattr(
            Trainer, "forward_backward", lambda *arguments: (work(), step(*arguments))[1]
        )

    return do


def test_a_tokenizer_that_is_replaced_in_a_run_is_not_shipped(data, other, in_a_step):
    in_a_step(lambda: shutil.copytree(other, data / "tokenizer", dirs_exist_ok=True))
    with pytest.raises(
        UserError, match=r"run/final: the model could not be written \(data/tokenizer: SHA"
    ):
        train(small_config(data, steps=1), Path("run"))
    assert not Path("run/final").exists()


def test_of_a_tokenizer_that_is_deleted_in_a_run_the_hub_is_not_asked(data, in_a_step):
    in_a_step(lambda: shutil.rmtree(data / "tokenizer"))
    with pytest.raises(UserError, match=r"data/tokenizer: has no tokenizer\.json"):
        train(small_config(data, steps=1, sample_every=1), Path("run"))
