"""Each mistake a user can make: one line that names the culprit, exit code 2, nothing written."""

import hashlib
import shutil
from pathlib import Path

import pytest

from lpa.data import bundled_corpus


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def refused(lpa, tmp_path):
    """Run a command that must fail as a user's mistake does; all it may touch lies in tmp_path."""

    def run(*arguments: object, naming: list[str]) -> None:
        before = snapshot(tmp_path), sorted(tmp_path.rglob("*"))
        finished = lpa(*arguments, cwd=tmp_path)
        assert finished.code == 2, finished.stderr
        assert finished.stdout == ""
        lines = [line for line in finished.stderr.splitlines() if line.startswith("lpa: error: ")]
        assert len(lines) == 1, finished.stderr
        assert "Traceback" not in finished.stderr
        for part in naming:
            assert part in lines[0]
        assert (snapshot(tmp_path), sorted(tmp_path.rglob("*"))) == before

    return run


@pytest.fixture
def train(prepared, tmp_path, tiny):
    return ["train", "--data.path", prepared, "--out", "run", "--train.steps", 2, *tiny]


def test_a_missing_source(refused):
    refused(
        *("prepare", "gone.txt", "--out", "data", "--vocab-size", 300),
        naming=["gone.txt", "no such file"],
    )


def test_a_value_of_another_type_in_plain_words(refused):
    refused(
        *("convert", "factorize", "model", "--out", "out", "--rank-fraction", "much"),
        naming=["rank-fraction: got much; expected a number"],
    )
    refused(
        *("train", "--out", "run", "--model.head_dim", "wide"),
        naming=["model.head_dim: got wide; expected a whole number or null"],
    )
    refused(
        *("train", "--out", "run", "--optim.name", "sgd"),
        naming=["optim.name: got sgd; expected one of adamw, muon"],
    )


def test_an_empty_source(refused, tmp_path):
    (tmp_path / "empty.txt").touch()
    refused(
        *("prepare", "empty.txt", "--out", "data", "--vocab-size", 300),
        naming=["empty.txt", "is empty; expected text"],
    )


def test_a_source_of_blanks(refused, tmp_path):
    (tmp_path / "blank.txt").write_text(" \n \n")
    refused(
        *("prepare", "blank.txt", "--out", "data", "--vocab-size", 300),
        naming=["blank.txt", "no text"],
    )


def test_neither_vocabulary_nor_tokenizer(refused):
    refused(
        *("prepare", bundled_corpus("test"), "--out", "data"),
        naming=["--vocab-size, --tokenizer: got neither; expected exactly one"],
    )


def test_a_data_directory_that_exists(refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("mine")
    refused(
        *("prepare", bundled_corpus("test"), "--out", "data", "--vocab-size", 300),
        naming=["--out data: already exists", "--overwrite"],
    )


def test_text_shorter_than_one_context(refused, lpa, tmp_path, tiny):
    (tmp_path / "short.txt").write_text("Far too short.\n")
    finished = lpa(
        *("prepare", "short.txt", "--out", "data", "--vocab-size", 300, "--validation-fraction", 0),
        cwd=tmp_path,
    )
    assert finished.code == 0, finished.stderr
    refused(
        *("train", "--data.path", "data", "--out", "run", *tiny),
        naming=["data data: the train split has", "expected at least 33"],
    )


def test_an_unknown_yaml_key(refused, tmp_path, train):
    (tmp_path / "recipe.yaml").write_text("model:\n  rnak: 8\n")
    refused(
        "train", "recipe.yaml", *train[1:], naming=["unknown key model.rnak", "rank", "ffn_rank"]
    )


def test_an_unknown_yaml_section(refused, tmp_path, train):
    (tmp_path / "recipe.yaml").write_text("modle:\n  rank: 8\n")
    refused("train", "recipe.yaml", *train[1:], naming=["modle", "model", "optim"])


def test_a_recipe_that_is_not_yaml(refused, tmp_path, train):
    (tmp_path / "recipe.yaml").write_text("model: [\n")
    refused("train", "recipe.yaml", *train[1:], naming=["RECIPE recipe.yaml: is not YAML"])


def test_a_missing_recipe(refused, train):
    refused("train", "gone.yaml", *train[1:], naming=["RECIPE gone.yaml: no such file"])


def test_an_unknown_option(refused, train):
    refused(*train, "--train.stpes", 3, naming=["unknown option --train.stpes", "--help"])


@pytest.mark.parametrize("rank", [0, -4, 33])
def test_a_rank_that_cannot_be(refused, train, rank):
    refused(
        *train, "--model.rank", rank, naming=[f"rank: got {rank}; expected an integer from 1 to 32"]
    )


def test_a_rank_that_saves_nothing_warns_and_names_the_break_even(lpa, train, tmp_path):
    finished = lpa(*train, "--model.rank", 16, cwd=tmp_path)
    assert finished.code == 0, finished.stderr
    [warning] = [line for line in finished.stderr.splitlines() if line.startswith("lpa: warning")]
    assert "rank 16 saves nothing" in warning
    assert "break-even rank, that is up to 15" in warning


@pytest.mark.parametrize("lr", ["nan", ".nan", "-1", "fast"])
def test_a_learning_rate_that_is_none(refused, train, lr):
    refused(*train, "--optim.lr", lr, naming=["optim.lr", lr.strip("."), "expected"])


def test_an_unknown_placement(refused, train):
    refused(
        *train,
        "--model.placement",
        "attn",
        naming=["placement", "attn", "none, attention, ffn, all"],
    )


def test_a_model_with_fewer_tokens_than_the_data(refused, train):
    refused(*train, "--model.vocab_size", 299, naming=["model.vocab_size: got 299", "at least 300"])


def test_evaluation_data_of_another_vocabulary(refused, lpa, tmp_path, run):
    prepared = lpa(
        *("prepare", bundled_corpus("test"), "--out", "data", "--vocab-size", 400), cwd=tmp_path
    )
    assert prepared.code == 0, prepared.stderr
    refused(
        *("eval", "perplexity", run, "--data", "data"),
        naming=["--data data", "another tokenizer", "400", "300"],
    )


def test_a_run_directory_that_exists(refused, run, train, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    refused(*train, naming=["--out run", "already holds a run", "--resume", "--overwrite"])


def test_overwrite_spares_what_is_no_run(refused, train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("mine")
    refused(
        *train,
        "--overwrite",
        naming=["--overwrite: run is not a training run", "no .lpa-output.json"],
    )


def test_resuming_without_a_checkpoint(refused, train, run, tmp_path):
    refused(*train, "--resume", naming=["--resume: run: no such run directory"])
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "run")
    refused(*train, "--resume", naming=["--resume: run: has no checkpoint"])
    (tmp_path / "run" / "config.yaml").unlink()
    (tmp_path / "run" / "result.json").write_text("{}")
    refused(*train, "--resume", naming=["--resume: run is not a run directory", "config.yaml"])


def test_resuming_with_another_configuration(refused, lpa, train, tmp_path):
    first = lpa(*train, "--train.steps", 4, "--train.stop_at", 2, cwd=tmp_path)
    assert first.code == 0, first.stderr
    refused(
        *train,
        *("--train.steps", 4, "--model.rank", 4, "--resume"),
        naming=["--resume", "model.rank was 8, now 4"],
    )


def test_evaluating_a_run_that_has_no_model(refused, run, prepared, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "run")
    refused(
        *("eval", "perplexity", "run", "--data", prepared),
        naming=["model run", "has not finished", "--resume"],
    )
    refused(*("generate", "gone"), naming=["model gone: no such directory"])


def test_a_truncated_shard(refused, prepared, tmp_path, tiny, run):
    shutil.copytree(prepared, tmp_path / "data")
    for split in ("train", "test"):
        shard = tmp_path / "data" / f"{split}-00000.npy"
        shard.write_bytes(shard.read_bytes()[:-100])
    refused(
        *("train", "--data.path", "data", "--out", "run", *tiny),
        naming=["train-00000.npy: shard is truncated"],
    )
    refused(
        *("eval", "perplexity", run, "--data", "data"),
        naming=["test-00000.npy: shard is truncated"],
    )


def test_a_shard_that_was_replaced(refused, prepared, tmp_path, tiny):
    shutil.copytree(prepared, tmp_path / "data")
    shard = tmp_path / "data" / "train-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    refused(
        *("train", "--data.path", "data", "--out", "run", *tiny),
        naming=["train-00000.npy: SHA-256 is not that of the manifest"],
    )


@pytest.mark.parametrize("options", [["--out", "run"], ["--dry-run"]])
def test_data_without_its_tokenizer(refused, prepared, tmp_path, tiny, options):
    shutil.copytree(prepared, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "tokenizer")
    refused(
        *("train", "--data.path", "data", *options, *tiny),
        naming=["data/tokenizer: has no tokenizer.json; expected", "`lpa prepare`"],
    )


def test_a_malformed_line(refused, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    refused(
        *("prepare", "a.jsonl", "--out", "data", "--vocab-size", 300),
        naming=["a.jsonl: cannot be read as json: line 2"],
    )


def test_an_encoding_that_is_not_utf_8(refused, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    refused(
        *("prepare", "latin.txt", "--out", "data", "--vocab-size", 300),
        naming=["latin.txt: cannot be read as text", "expected UTF-8, or errors=replace"],
    )


def test_data_that_is_not_prepared(refused, tmp_path, tiny):
    (tmp_path / "data").mkdir()
    refused(
        *("train", "--data.path", "data", "--out", "run", *tiny),
        naming=["data data: has no manifest.json", "lpa prepare"],
    )


@pytest.mark.parametrize("command", ["prepare", "train", "demo"])
def test_an_output_below_a_file(refused, train, tmp_path, command):
    (tmp_path / "notes.txt").write_text("words " * 1000)
    arguments = {
        "prepare": ["prepare", "notes.txt", "--vocab-size", 300],
        "train": train,
        "demo": ["demo"],
    }[command]
    refused(*arguments, "--out", "notes.txt/out", naming=["notes.txt", "expected a path"])
