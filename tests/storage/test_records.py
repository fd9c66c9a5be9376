"""Every file that is read back, with every damage: one line that names the file, or it is passed over."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from lpa.data.manifest import Manifest, Shard, Split
from lpa.data.preparation.encode_jobs import load_job_stats
from lpa.errors import LPAWarning, UserError
from lpa.eval.glue.score_cache import ScoreCache
from lpa.eval.perplexity import Evaluation
from lpa.model import preset_config
from lpa.scoring.perplexity import Perplexity
from lpa.storage.records import YamlLoader, parse_value, read_json, read_yaml
from lpa.study.design.grid import Study, Variant
from lpa.study.design.study_index import IndexedRun, StudyIndex, read_index
from lpa.study.design.tuned_settings import read_tuned
from lpa.study.execution.job import read_test
from lpa.study.planning.recommendation import recommend_rank
from lpa.study.results.study_results import find_studies
from lpa.train.checkpoint import store
from lpa.train.config import DataConfig, RunConfig
from lpa.train.config.recipe import check_recipe
from lpa.train.init_weights import InitialWeights
from lpa.train.logging.metrics_file import read_metrics
from lpa.train.result import RunResult
from lpa.train.run_table import read_run
from lpa.train.state import TrainState

PERPLEXITY = Perplexity(100, 4.0, 54.6, 300.0, 2.0)
RESULT = RunResult(8, 1024, 5000, 30000, 900.5, 1.5, 2.5, 2**20, PERPLEXITY)
EVALUATION = Evaluation(
    **asdict(PERPLEXITY),
    mode="blocks",
    seq_len=32,
    stride=32,
    documents=3,
    standard_error=float("nan"),
    interval=(50.0, 60.0),
    resampling_unit="documents",
)
SPLIT = Split([Shard("train-00000.npy", 40, "ab")], tokens=40, documents=2, bytes=160, words=30)
MANIFEST = Manifest("cd", 300, "uint16", 0, {"train": SPLIT}, {"sources": {}})
CONFIG = RunConfig(data=DataConfig(Path("data")))
SIZES = preset_config("130m")
INDEX = StudyIndex(
    **vars(Study("placement", "tiny", "Where?", "dense", "a CPU", 5e10, False, {"optim.lr": 1e-3})),
    seeds=1,
    split="test",
    data="data",
    data_hashes={"tokenizer": "cd"},
    runs=[IndexedRun("dense", 0, "0123")],
)
INDEX.variants.append(Variant("dense", "dense", {"model.placement": "none"}, None, 10, 60, 100))


def with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    return {"sha256": store.content_digest(content), "content": content}


MODEL = '{"model_type": "gpt2"}'
MODEL_FILES = {"config.json": hashlib.sha256(MODEL.encode()).hexdigest()}

CHECKPOINT_MANIFEST = {
    "format": 2,
    "state": asdict(TrainState(step=8)),
    "fingerprints": {"data.tokens": "aa"},
    "torch": "2.13.0",
    "files": {"shard.safetensors": {"bytes": 3, "sha256": "ab"}},
}


@dataclass
class File:
    """A file that is read back.

    Attributes:
        name: below a folder.
        content: what is written when all is well.
        read: what reads it, given the folder.
        number: the path to a number in it that may not be text.
    """

    name: str
    content: Any
    read: Callable[[Path], Any]
    number: tuple[str | int, ...]

    def write(self, folder: Path, content: Any) -> None:
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text(content))

    def text(self, content: Any) -> str:
        if self.name.endswith(".yaml"):
            return yaml.safe_dump(content, sort_keys=False)
        return json.dumps(content) + "\n"


def scores(folder: Path) -> Any:
    """Of a model that has nothing but a configuration."""
    (folder / "config.json").write_text(MODEL)
    return ScoreCache(folder, folder, from_scratch=True).load({"task": "sst2", "seed": 0})


FILES = [
    File("manifest.json", asdict(MANIFEST), Manifest.load, ("splits", "train", "tokens")),
    File("result.json", asdict(RESULT), RunResult.load, ("validation", "loss")),
    File("test.json", asdict(EVALUATION), read_test, ("interval", 0)),
    File("metrics.jsonl", {"step": 1, "loss": 2.5}, read_metrics, ("step",)),
    File("initial_weights.json", {"sha256": "ab", "config": {}}, InitialWeights.load, ("sha256",)),
    File(
        "checkpoints/step-00000008/manifest.json",
        with_checksum(CHECKPOINT_MANIFEST),
        lambda folder: store.read_manifest(store.checkpoint_path(folder, 8)),
        ("content", "state", "step"),
    ),
    File(
        "placement-tiny.json",
        asdict(INDEX),
        lambda folder: find_studies([folder]),
        ("variants", 0, "parameters"),
    ),
    File(
        "tuned-tiny.yaml",
        {"none": {"optim.lr": 0.5}},
        lambda folder: read_tuned(folder / "tuned-tiny.yaml"),
        ("none", "optim.lr"),
    ),
    File(
        "config.yaml",
        CONFIG.to_dict(),
        lambda folder: RunConfig.load(folder / "config.yaml"),
        ("optim", "lr"),
    ),
    File(
        "recipe.yaml",
        {"train": {"steps": 5}},
        lambda folder: check_recipe(folder / "recipe.yaml"),
        ("train", "steps"),
    ),
    File(
        "from-scratch/sst2-seed0.json",
        {
            "request": {"task": "sst2", "seed": 0, "model": MODEL_FILES},
            "scores": {"accuracy": 0.5},
        },
        scores,
        ("scores", "accuracy"),
    ),
    File(
        "bench.json",
        {"break_even_rank": {"flops": 384.0, "measured": 96.0}},
        lambda folder: recommend_rank(SIZES, seq_len=64, bench=folder / "bench.json"),
        ("break_even_rank", "measured"),
    ),
    File(
        "analysis.json",
        {
            "spectra": [
                {"name": "q_proj", "shape": [768, 768], "rank": None, "singular_values": [1.0, 0.5]}
            ]
        },
        lambda folder: recommend_rank(SIZES, seq_len=64, analysis=folder),
        ("spectra", 0, "singular_values", 0),
    ),
]

# The bytes of a file after a damage that leaves nothing of its content.
DESTROYED: dict[str, bytes] = {
    "null": b"null\n",
    "a list": b"[]\n",
    "a list of one": b"[1]\n",
    "text": b'"text"\n',
    "a number": b"3\n",
    "true": b"true\n",
    "blanks": b" \n \n",
    "not UTF-8": b'{"a": "\xff\xfe"}\n',
    "zeros": b"\0" * 100,
    "deep lists": b"[" * 10_000 + b"\n",
    "deep mappings": b'{"a":' * 10_000 + b"\n",
    "just too deep": b'{"a":' * 100 + b"1" + b"}" * 100 + b"\n",
    "endless number": b'{"step": ' + b"9" * 5000 + b"}\n",
    "a key twice": b'{"step": 1, "step": 2}\n',
    "no text as key": b"{3: 4}\n",
    "a lone surrogate": b'{"step": "\\ud800"}\n',
    "random": bytes(range(256)) + b"\n",
}


def refused(file: File, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        file.read(folder)
    message = str(error.value)
    assert str(folder / file.name) in message
    assert "\n" not in message
    assert len(message) < 1000
    return message


@pytest.fixture
def whole(request, tmp_path):
    """A file, written as it should be."""
    request.param.write(tmp_path, request.param.content)
    return request.param


each = pytest.mark.parametrize("whole", FILES, ids=lambda file: file.name, indirect=True)


@each
def test_what_is_whole_is_read(whole, tmp_path):
    assert whole.read(tmp_path) != []


@each
@pytest.mark.parametrize("damage", DESTROYED)
def test_a_destroyed_file_is_one_line(whole, tmp_path, damage):
    (tmp_path / whole.name).write_bytes(DESTROYED[damage])
    refused(whole, tmp_path)


@each
def test_a_truncated_file_is_one_line(whole, tmp_path):
    path = tmp_path / whole.name
    content = path.read_bytes()
    if whole.name.endswith((".json", ".jsonl")):
        for part in (1, 0.5, 0.9):
            path.write_bytes(content[: max(1, int(len(content) * part) - 3)])
            if whole.name == "metrics.jsonl":  # as a killed process leaves the last line
                assert whole.read(tmp_path) == []
            else:
                refused(whole, tmp_path)
    path.write_bytes(b"")
    if whole.name == "metrics.jsonl":
        assert whole.read(tmp_path) == []
    else:
        assert "is empty" in refused(whole, tmp_path)


@each
def test_a_directory_or_pipe_in_the_place_is_one_line(whole, tmp_path):
    path = tmp_path / whole.name
    path.unlink()
    path.mkdir()
    refused(whole, tmp_path)
    path.rmdir()
    os.mkfifo(path)
    refused(whole, tmp_path)


@each
def test_a_file_too_large_is_not_read(whole, tmp_path):
    os.truncate(tmp_path / whole.name, 2**40)
    refused(whole, tmp_path)


@each
@pytest.mark.parametrize("value", ["4", True, None, [], {}, 2**63, -(2**63) - 1])
def test_a_value_of_another_type_names_the_field(whole, tmp_path, value):
    *above, last = whole.number
    content = json.loads(json.dumps(whole.content))
    place = content
    for step in above:
        place = place[step]
    if type(place[last]) is type(value):
        pytest.skip("that is its type")
    place[last] = value
    if whole.name.startswith("checkpoints/"):  # damage by hand that has a right checksum
        content = with_checksum(content["content"])
    whole.write(tmp_path, content)
    message = refused(whole, tmp_path)
    assert str(whole.number[-1] if isinstance(last, str) else whole.number[0]) in message


@each
def test_a_missing_or_unknown_field_is_named(whole, tmp_path):
    open_ended = ("metrics.jsonl", "tuned-tiny.yaml", "config.yaml", "recipe.yaml")
    open_ended += ("bench.json", "analysis.json")  # of which parts are read
    if whole.name in open_ended:
        pytest.skip("its names are not declared, or recorded elsewhere")
    whole.write(tmp_path, {**whole.content, "surplus": 1})
    assert "surplus: unknown field; expected one of" in refused(whole, tmp_path)
    # Those of dataclasses that have a default, as older versions did not write them.
    kinds = (RunResult, Manifest, StudyIndex)
    optional = {f.name for kind in kinds for f in fields(kind) if f.default is not MISSING}
    for name in whole.content.keys() - (optional - {"schema_version"}):
        whole.write(tmp_path, {k: v for k, v in whole.content.items() if k != name})
        assert name in refused(whole, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {seq_len: 8}", "data.path: is missing; expected a path"),
        ("data: {path: x}\nmodle: {}", "section: got modle; expected one of data, model"),
        ("data: {path: x}\noptim: {lrr: 1}", "optim.lrr: unknown field; expected one of beta1"),
        ("data: {path: x}\noptim: {lr: .nan}", "optim.lr: got nan; expected a positive number"),
        (
            "data: {path: x}\ntrain: {steps: 0x7fffffffffffffffff}",
            "train.steps: got a whole number",
        ),
        ("data: {path: x, path: y}", "line 1: 'path' is given twice"),
        ("data: !!python/name:os.system", "is not YAML (line 1: could not determine"),
        ("data: !!int x", "is not YAML (invalid literal"),
        ("data: !!timestamp x", "is not YAML (a value that its tag does not fit)"),
        ("data: &a {path: *a}", "holds too much"),
        ("data: [*b]", "undefined alias"),
        (
            'data: {path: "a\\ud800"}',
            "data.path: got 'a\\ud800'; expected text of whole characters",
        ),
        ('data: {"a\\ud800": x}', "data: got key 'a\\ud800'; expected text"),
    ],
)
def test_a_wrong_configuration_names_file_and_field(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        RunConfig.load(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_aliases_that_stand_for_endlessly_much_are_refused(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="holds too much"):
        read_yaml(tmp_path / "bomb.yaml", dict[str, Any])


def test_an_index_that_contradicts_itself_is_refused(tmp_path):
    fields = asdict(INDEX)
    for change, message in (
        ({"variants": []}, "variants: got"),
        ({"variants": fields["variants"] * 2}, "each named once"),
        ({"variants": [{**fields["variants"][0], "baseline": "lpa"}]}, "baseline: got 'lpa'"),
        ({"runs": [{"variant": "lpa", "seed": 0, "run": "01"}]}, "variant: got 'lpa'"),
        ({"runs": [{"variant": "dense", "seed": 0, "run": "../01"}]}, "run: got '../01'"),
    ):
        path = tmp_path / "placement-tiny.json"
        path.write_text(json.dumps({**fields, **change}))
        with pytest.raises(UserError, match=message):
            read_index(path)


@pytest.mark.parametrize("damage", DESTROYED)
def test_what_has_a_substitute_is_passed_over(tmp_path, damage):
    """A unit is encoded again, and without a note of the latest checkpoint the highest step is it."""
    (tmp_path / "train-0000003.json").write_bytes(DESTROYED[damage])
    assert load_job_stats(tmp_path, "train", 3) is None
    path = store.checkpoint_path(tmp_path, 8)
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps(with_checksum(CHECKPOINT_MANIFEST)))
    (store.checkpoints_directory(tmp_path) / "latest.json").write_bytes(DESTROYED[damage])
    assert store.resumable_checkpoints(tmp_path) == [path]
    (path / "manifest.json").write_bytes(DESTROYED[damage])
    assert store.resumable_checkpoints(tmp_path) == []


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "result.json"])
@pytest.mark.parametrize("damage", DESTROYED)
def test_the_table_of_runs_says_what_is_wrong_with_one(tmp_path, name, damage):
    (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 2.5, "tokens": 512}\n')
    RESULT.save(tmp_path)
    assert read_run(tmp_path, "run").problem == ""
    (tmp_path / name).write_bytes(DESTROYED[damage])
    row = read_run(tmp_path, "run")
    assert row.problem.startswith(f"{name}: ")
    assert "\n" not in row.problem
    assert row.loss == (None if name == "metrics.jsonl" else 2.5)


@pytest.mark.parametrize("name", ["result.json", "test.json"])
@pytest.mark.parametrize("damage", ["null", "not UTF-8", "zeros", "deep lists"])
def test_a_study_is_read_without_a_damaged_run(tmp_path, name, damage):
    index = StudyIndex(**{**vars(INDEX), "runs": [IndexedRun("dense", i, f"0{i}") for i in (0, 1)]})
    (tmp_path / "placement-tiny.json").write_text(json.dumps(asdict(index)))
    for number in (0, 1):
        run = tmp_path / "runs" / f"0{number}"
        run.mkdir(parents=True)
        RESULT.save(run)
        (run / "test.json").write_text(json.dumps(asdict(EVALUATION)))
    (tmp_path / "runs" / "01" / name).write_bytes(DESTROYED[damage])
    [study] = find_studies([tmp_path])
    [row] = study.rows
    assert (list(row.perplexities), row.missing) == ([0], [1])
    assert f"runs/01/{name}: " in row.failed[1]


def test_a_study_is_read_without_a_damaged_curve_or_index(tmp_path):
    (tmp_path / "placement-tiny.json").write_text(json.dumps(asdict(INDEX)))
    (tmp_path / "rank-tiny.json").write_bytes(b"\0" * 100)
    run = tmp_path / "runs" / "0123"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\n{"step": 3}\n')
    with pytest.warns(LPAWarning) as warned:
        [study] = find_studies([tmp_path])
    assert study.curves == {"dense": [[]]}
    said = sorted(str(warning.message) for warning in warned)
    assert "rank-tiny.json: is not JSON" in said[0]
    assert "runs/0123/metrics.jsonl: line 2: is not JSON" in said[1]


def test_numbers_as_yaml_1_2_has_them():
    numbers = [1e-3, -2e4, 0.5, -5.0, 8.5, 1000.5, float("-inf"), 1000, 7, 0, 16]
    text = "[1e-3, -2E+4, .5, -.5e1, 08.5, 1_000.5, -.inf, 1_000, +7, -0, 0x10]"
    assert repr(yaml.load(text, YamlLoader)) == repr(numbers)
    words = ["1e3x", "2024-01-01", "0100", "-010", "1:30", "1:30.5"]
    assert yaml.load(f"[{', '.join(words)}]", YamlLoader) == words


def test_what_only_yaml_1_1_takes_for_a_number_is_refused_in_its_place(tmp_path):
    file = tmp_path / "ranks.yaml"
    for text in ("0100", "1:30"):
        file.write_text(f"q_proj: {text}\n")
        with pytest.raises(UserError, match=rf"q_proj: got '{text}'; expected a whole number or"):
            read_yaml(file, dict[str, int | None])
        file.write_text(f"data: {{path: data}}\ntrain: {{steps: {text}}}\n")
        for read in (RunConfig.load, check_recipe):
            with pytest.raises(UserError, match=rf"train.steps: got '{text}'; expected a whole"):
                read(file)


def test_whole_numbers_may_stand_for_others_and_nothing_else_may(tmp_path):
    assert parse_value({"a": 1, "b": 2.5}, dict[str, float]) == {"a": 1.0, "b": 2.5}
    assert parse_value({"a": None}, dict[str, int | None]) == {"a": None}
    for value in ("4", True, [4], None):
        with pytest.raises(UserError, match=r"^a: got .*; expected a number$"):
            parse_value({"a": value}, dict[str, float])
    with pytest.raises(UserError, match=r"^a: got 2\.5; expected a whole number$"):
        parse_value({"a": 2.5}, dict[str, int])


def test_a_mark_of_byte_order_is_no_content(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json", dict[str, int]) == {"a": 1}
