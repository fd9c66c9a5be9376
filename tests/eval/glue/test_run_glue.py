import json
import math
import os
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.damaged_models import edit_json
from transformers import AutoTokenizer, Trainer, TrainingArguments

from lpa.convert.merge import merge_directory
from lpa.errors import LPAWarning, UserError
from lpa.eval.glue.examples import load_examples
from lpa.eval.glue.finetune import FineTuningConfig, _keep_to, fine_tune
from lpa.eval.glue.run_glue import run_glue
from lpa.eval.glue.tasks import TASKS
from lpa.model.loading import load_model
from lpa.model.surgery.factorize import factorize
from lpa.storage.locks import lock_directory

# In one worker: they share what takes long to make.
pytestmark = pytest.mark.xdist_group("glue")

QUICK = FineTuningConfig(epochs=1, batch_size=8, learning_rate=1e-3, max_length=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small tasks that can be learned: the label is whether the sentence names a cat."""
    folder = tmp_path_factory.mktemp("glue")
    sentences = [f"{n} times sat the {animal}" for n in range(12) for animal in ("cat", "dog")]
    for task, header, row in [
        ("SST-2", "sentence\tlabel", lambda s: f"{s}\t{int('cat' in s)}"),
        ("STS-B", "sentence1\tsentence2\tscore", lambda s: f"{s}\tthe cat\t{5.0 * ('cat' in s)}"),
    ]:
        (folder / task).mkdir()
        for name in ("train", "dev"):
            rows = [header, *map(row, sentences)]
            (folder / task / f"{name}.tsv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def result(run, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    tasks = ["sst2", "stsb"]
    found = run_glue(
        [run], tasks, data=data, seeds=2, from_scratch=True, settings=QUICK, out=out, device="cpu"
    )
    return found, out


def test_every_task_and_seed_beside_the_baselines(result, run):
    found, _ = result
    assert found["sst2"].examples == {"train": 24, "validation": 24}
    assert found["sst2"].majority == {"accuracy": 0.5}
    assert list(found["sst2"].models) == [run.name, f"{run.name} (from scratch)"]
    for scores in found["sst2"].models.values():
        accuracy = scores["accuracy"]
        assert len(accuracy.values) == 2
        assert accuracy.mean == sum(accuracy.values) / 2
        assert accuracy.std == pytest.approx(abs(accuracy.values[0] - accuracy.values[1]) / 2**0.5)
    assert list(found["stsb"].models[run.name]) == ["pearson", "spearman"]


def test_what_is_done_is_not_done_again(result, run, data):
    found, out = result
    steps = []
    again = run_glue(
        [run],
        ["sst2"],
        data=data,
        seeds=3,
        settings=QUICK,
        out=out,
        device="cpu",
        on_progress=lambda what, done, total: steps.append(what),
    )
    assert set(steps) == {f"SST-2 {run.name} seed 2"}
    values = again["sst2"].models[run.name]["accuracy"].values
    assert values[:2] == found["sst2"].models[run.name]["accuracy"].values


@pytest.mark.parametrize(
    ("scores", "got"),
    [({}, "none"), ({"f1": 1.0}, "f1"), ({"accuracy": 1, "f1": 1}, "accuracy, f1")],
)
def test_kept_scores_of_another_metric_are_refused(result, run, data, tmp_path, scores, got):
    _, out = result
    shutil.copytree(out, tmp_path / "out")
    [path] = (tmp_path / "out").rglob("pre-trained/sst2-seed0.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": scores}))
    with pytest.raises(UserError, match=f"sst2-seed0.json: scores: got {got}; expected accuracy"):
        run_glue(
            [run],
            ["sst2"],
            data=data,
            seeds=1,
            settings=QUICK,
            out=tmp_path / "out",
            device="cpu",
        )


def test_scores_of_a_dense_model_in_the_place_of_pairs_are_refused(run, data, tmp_path):
    """Earlier versions built such a model from scratch without its pairs."""
    merge_directory(run / "final", tmp_path / "model")
    model = load_model(tmp_path / "model")
    factorize(model, rank=4)
    model.save_pretrained(tmp_path / "model")
    options = {"data": data, "seeds": 1, "from_scratch": True, "settings": QUICK, "device": "cpu"}
    found = run_glue([tmp_path / "model"], ["sst2"], **options)
    assert run_glue([tmp_path / "model"], ["sst2"], **options) == found
    [path] = tmp_path.rglob("from-scratch/sst2-seed0.json")
    kept = json.loads(path.read_text())
    hashes = {"config.json": kept["request"]["model"]["config.json"]}
    path.write_text(json.dumps(kept | {"request": kept["request"] | {"model": hashes}}))
    with pytest.raises(UserError, match=r"something else \(model was .*choose another --out"):
        run_glue([tmp_path / "model"], ["sst2"], **options)


def test_the_same_seed_gives_the_same_scores(result, run, data, tmp_path):
    found, _ = result
    again = run_glue(
        [run], ["stsb"], data=data, seeds=1, settings=QUICK, out=tmp_path, device="cpu"
    )
    first = found["stsb"].models[run.name]["pearson"].values[0]
    assert again["stsb"].models[run.name]["pearson"].values == [first]


def test_a_score_that_is_not_defined_is_shown_as_such(result, run, data, lpa):
    _, out = result
    path = next(out.rglob("pre-trained/stsb-seed1.json"))
    before = path.read_text()
    kept = json.loads(before)
    # What constant predictions leave.
    kept["scores"] = dict.fromkeys(kept["scores"], math.nan)
    path.write_text(json.dumps(kept))
    options = ["--tasks", "stsb", "--data", data, "--out", out, "--seeds", 2, "--device", "cpu"]
    for name in ("epochs", "batch_size", "learning_rate", "max_length", "dtype"):
        options += [f"--{name.replace('_', '-')}", getattr(QUICK, name)]
    try:
        table = lpa("eval", "glue", run, *options)
        as_json = lpa("eval", "glue", run, *options, "--json")
    finally:
        path.write_text(before)
    assert (table.code, as_json.code) == (0, 0), table.stderr + as_json.stderr
    found = json.loads(as_json.stdout)["stsb"]["models"][run.name]["pearson"]
    assert table.stdout.count("–") == 4  # the majority's correlations are not defined either
    assert (found["mean"], found["std"], found["values"][1]) == (None, None, None)


def test_scores_from_before_there_was_a_setting_are_those_of_its_default(
    result, run, data, tmp_path
):
    kept = tmp_path / "kept"
    shutil.copytree(result[1], kept)
    for file in kept.rglob("sst2-seed*.json"):
        stored = json.loads(file.read_text())
        del stored["request"]["dtype"]
        file.write_text(json.dumps(stored))
    options = {"data": data, "seeds": 1, "out": kept, "device": "cpu"}
    again = run_glue([run], ["sst2"], settings=QUICK, **options)
    kept_values = result[0]["sst2"].models[run.name]["accuracy"].values
    assert again["sst2"].models[run.name]["accuracy"].values == kept_values[:1]
    with pytest.raises(UserError, match=r"dtype was float32, now bfloat16"):
        run_glue([run], ["sst2"], settings=replace(QUICK, dtype="bfloat16"), **options)


def test_results_of_other_settings_are_not_mixed_in(result, run, data):
    _, out = result
    other = FineTuningConfig(epochs=1, batch_size=4, learning_rate=1e-3, max_length=32)
    with pytest.raises(UserError, match=r"batch_size was 8, now 4.*choose another --out"):
        run_glue([run], ["sst2"], data=data, seeds=1, settings=other, out=out, device="cpu")


def test_a_merged_model_is_a_stock_llama_and_scores_beside_the_original(run, data, tmp_path):
    merge_directory(run / "final", tmp_path / "merged")
    learn = FineTuningConfig(epochs=30, batch_size=8, learning_rate=1e-2, max_length=32)
    found = run_glue(
        [run, tmp_path / "merged"],
        ["sst2"],
        data=data,
        seeds=1,
        settings=learn,
        out=tmp_path / "out",
        device="cpu",
    )["sst2"]
    # One word decides the label, so both learn it.
    assert {name: scores["accuracy"].mean for name, scores in found.models.items()} == {
        run.name: 1.0,
        "merged": 1.0,
    }


@pytest.mark.parametrize("from_scratch", [False, True])
def test_the_separator_of_a_stock_model_learns(merged, data, monkeypatch, from_scratch):
    """Where it pads too: stock classes give the token that pads no gradient, and start it at zero."""
    before, models = [], []
    train = Trainer.train

    def keep_and_train(trainer):
        models.append(trainer.model)
        before.append(trainer.model.get_input_embeddings().weight.detach().clone())
        return train(trainer)

    monkeypatch.setattr(Trainer, "train", keep_and_train)
    fine_tune(
        merged,
        TASKS["stsb"],
        load_examples("stsb", TASKS["stsb"], data),
        replace(QUICK, weight_decay=0),
        seed=0,
        from_scratch=from_scratch,
        device="cpu",
    )
    [embeddings], [model] = before, models
    end = model.config.pad_token_id
    assert end == AutoTokenizer.from_pretrained(merged).eos_token_id
    assert embeddings[end].std().item() == pytest.approx(embeddings.std().item(), rel=0.5)
    assert not torch.equal(model.get_input_embeddings().weight[end], embeddings[end])


@pytest.mark.parametrize("pad_token", [None, "<beyond the rows>"])
@pytest.mark.filterwarnings("ignore:.*special tokens:lpa.errors.LPAWarning")
def test_without_a_padding_token_the_end_of_text_pads(run, data, tmp_path, pad_token):
    shutil.copytree(run / "final", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.pad_token = pad_token
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.warns(LPAWarning, match="has no padding token"):
        run_glue([tmp_path / "model"], ["sst2"], data=data, seeds=1, settings=QUICK, device="cpu")
    kept = json.loads((tmp_path / "model" / "glue" / "pre-trained" / "sst2-seed0.json").read_text())
    assert kept["request"]["examples"] == {"train": 24, "validation": 24}


def test_text_beyond_the_context_is_shortened_and_said(run, data, tmp_path):
    settings = FineTuningConfig(epochs=1, learning_rate=1e-3, max_length=8)
    with pytest.warns(LPAWarning, match="STS-B: 48 examples are longer than 8 tokens"):
        run_glue([run], ["stsb"], data=data, seeds=1, settings=settings, out=tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "--epochs: got 0; expected a number above 0"),
        ("learning_rate", float("nan"), "--learning-rate: got nan; expected a number above 0"),
        ("max_length", 2, "--max-length: got 2; expected at least 4"),
        ("weight_decay", -1, "--weight-decay: got -1; expected at least 0"),
    ],
)
def test_a_setting_that_cannot_be_is_named(field, value, message):
    with pytest.raises(UserError, match=message):
        FineTuningConfig(**{field: value})


def test_two_processes_do_not_score_a_model_on_one_task(result, run, data):
    found, out = result
    folder = out / run.name / "pre-trained"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    arguments = {"data": data, "seeds": 2, "settings": QUICK, "out": out, "device": "cpu"}
    with lock_directory(folder, part="sst2"):
        said = f"--out {folder}: is in use by process {os.getpid()} on "
        with pytest.raises(UserError, match=said):
            run_glue([run], ["stsb", "sst2"], **arguments)
        again = run_glue([run], ["stsb"], **arguments)
    assert again["stsb"].models[run.name] == found["stsb"].models[run.name]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.json")} == before


def _without_tokenizer(model):
    for path in model.glob("tokenizer*"):
        path.unlink()


def _without_weights(model):
    (model / "model.safetensors").unlink()


def _without_classifier(model):
    edit_json(model / "config.json", {"model_type": "codegen"})


def _quantized(model):
    edit_json(model / "config.json", {"quantization_config": {"quant_method": "gptq"}})


@pytest.mark.parametrize(
    ("damage", "from_scratch", "message"),
    [
        (_without_tokenizer, False, "tokenizer .*second: the directory has no tokenizer.json"),
        (_without_weights, False, "second: has no model.safetensors"),
        (_without_classifier, False, "codegen: transformers has no sequence classifier of it"),
        (_quantized, True, "quantization_config.quant_method: got 'gptq'; expected low_rank or no"),
    ],
)
def test_nothing_is_trained_where_a_later_model_is_refused(
    merged, data, tmp_path, damage, from_scratch, message
):
    for name in ("first", "second"):
        shutil.copytree(merged, tmp_path / name)
    damage(tmp_path / "second")
    steps = []
    with pytest.raises(UserError, match=message):
        run_glue(
            [tmp_path / "first", tmp_path / "second"],
            ["sst2"],
            data=data,
            seeds=1,
            from_scratch=from_scratch,
            settings=QUICK,
            device="cpu",
            on_progress=lambda what, done, total: steps.append(what),
        )
    assert not steps
    assert not list(tmp_path.rglob("*-seed0.json"))


def test_nothing_is_trained_where_a_later_score_is_of_something_else(result, run, data, tmp_path):
    _, out = result
    shutil.copytree(out, tmp_path / "out")
    [path] = (tmp_path / "out").rglob("from-scratch/stsb-seed1.json")
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"request": kept["request"] | {"epochs": 2}}))
    for missing in (tmp_path / "out").rglob("sst2-seed*.json"):
        missing.unlink()
    with pytest.raises(UserError, match=r"stsb-seed1.json: .*epochs was 2, now 1"):
        run_glue(
            [run],
            ["sst2", "stsb"],
            data=data,
            seeds=2,
            from_scratch=True,
            settings=QUICK,
            out=tmp_path / "out",
            device="cpu",
        )
    assert not list((tmp_path / "out").rglob("sst2-seed*.json"))


def test_scores_that_are_all_kept_need_no_tokenizer(result, run, data, tmp_path):
    found, out = result
    shutil.copytree(run, tmp_path / run.name)
    _without_tokenizer(tmp_path / run.name / "final")
    again = run_glue(
        [tmp_path / run.name], ["sst2"], data=data, seeds=2, settings=QUICK, out=out, device="cpu"
    )
    assert again["sst2"].models[run.name] == found["sst2"].models[run.name]


def test_no_such_task_and_no_seed(run, data):
    with pytest.raises(UserError, match="--tasks: got 'cola2'; expected one of cola, sst2, mrpc"):
        run_glue([run], ["cola2"], data=data)
    with pytest.raises(UserError, match="--seeds: got 0; expected at least 1"):
        run_glue([run], ["sst2"], data=data, seeds=0)


def test_a_directory_that_is_no_model_is_named(lpa, data, tmp_path):
    finished = lpa("eval", "glue", tmp_path, "--tasks", "sst2", "--data", data)
    assert finished.code == 2
    assert finished.stderr.count("\n") == 1
    assert "has no config.json" in finished.stderr


def test_the_trainer_keeps_to_the_device_that_is_named(monkeypatch, tmp_path):
    """By itself it would take all GPUs, and give each of them a batch."""
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    sizes = {"per_device_train_batch_size": 32, "per_device_eval_batch_size": 32}
    arguments = TrainingArguments(output_dir=tmp_path, **sizes)
    arguments._n_gpu = 8
    assert arguments.train_batch_size == 256
    for name in ("cuda:1", "cpu"):
        _keep_to(torch.device(name), arguments)
        assert arguments.train_batch_size == arguments.eval_batch_size == 32
        assert arguments.device == torch.device(name)
    assert current == [torch.device("cuda:1")]
