"""The demonstration through the real command line, shortened to a few steps."""

import json
import re
from pathlib import Path

import pytest
from helpers.study_runs import fork_workers

from lpa.data import Manifest
from lpa.errors import UserError
from lpa.model import parameter_count, preset_config, training_flops_per_token
from lpa.storage import outputs as outputs_module
from lpa.storage.outputs import check_output_directory
from lpa.study.demo import demo as demo_module
from lpa.study.demo.demo import LEARNING_RATES, PROMPT, demo_config, run_demo, train_both
from lpa.train.config import RunConfig

KEYS = {
    "parameters",
    "train_flops_per_token",
    "tokens_per_second",
    "wall_seconds",
    "peak_memory_bytes",
    "test_perplexity",
    "test_word_perplexity",
    "test_bits_per_byte",
}
# In one worker: they share a demonstration.
pytestmark = pytest.mark.xdist_group("demo")

PERPLEXITIES = ("test_perplexity", "test_word_perplexity", "test_bits_per_byte")


@pytest.fixture(scope="module")
def demo(lpa, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    finished = lpa("demo", "--out", out, "--steps", 1, "--json")
    assert finished.code == 0, finished.stderr
    (out / "stdout.json").write_text(finished.stdout)
    return out


@pytest.mark.slow
def test_json_is_all_that_it_prints_and_holds_the_figures_of_both(demo):
    figures = json.loads((demo / "stdout.json").read_text())
    assert set(figures) == {"dense", "lpa", "out", "report", "samples"}
    assert (figures["out"], figures["report"]) == (str(demo), str(demo / "report.html"))
    assert set(figures["samples"]) == {"dense", "lpa"}
    assert all(text.startswith(PROMPT) for text in figures["samples"].values())
    assert set(figures["dense"]) == set(figures["lpa"]) == KEYS
    for name, placement in (("dense", "none"), ("lpa", "attention")):
        config = preset_config(
            "nano", placement=placement, vocab_size=2048, max_position_embeddings=256
        )
        assert figures[name]["parameters"] == parameter_count(config)
        assert figures[name]["train_flops_per_token"] == training_flops_per_token(config, 256)
        assert 1 < figures[name]["test_perplexity"] < 2048
        assert figures[name]["peak_memory_bytes"] > 50e6
    for key in ("parameters", "train_flops_per_token"):
        assert figures["lpa"][key] < figures["dense"][key]


@pytest.mark.slow
def test_both_runs_share_everything_but_placement_and_learning_rate(demo):
    configs = [(demo / name / "config.yaml").read_text().splitlines() for name in ("dense", "lpa")]
    differing = [
        (a.strip(), b.strip()) for a, b in zip(*configs, strict=True) if a.strip() != b.strip()
    ]
    assert {a.split(":")[0] for a, _ in differing} <= {"placement", "lr"}
    assert ("placement: none", "placement: attention") in differing
    assert set(Manifest.load(demo / "data").splits) == {"train", "validation", "test"}


def test_both_models_train_as_the_recipe_does(tmp_path):
    recipe = RunConfig.load(Path(__file__).parents[3] / "recipes" / "nano.yaml")
    ours = demo_config(tmp_path)
    for rate in LEARNING_RATES.values():
        ours.optim.lr = rate
        assert ours.optim == recipe.optim
    assert ours.model.preset == recipe.model.preset
    assert ours.model.initializer_range == recipe.model.initializer_range


@pytest.mark.slow
def test_another_terminal_shows_the_same_perplexities_to_the_last_digit(demo, lpa, tmp_path):
    narrow = {"COLUMNS": "40", "PYTHONIOENCODING": "ascii"}
    again = lpa("demo", "--out", tmp_path / "again", "--steps", 1, environment=narrow)
    assert again.code == 0, again.stderr
    assert again.stdout.isascii()
    assert again.stdout.strip()
    first = json.loads((demo / "stdout.json").read_text())
    kept = json.loads((tmp_path / "again" / "result.json").read_text())
    for name in ("dense", "lpa"):
        for key in PERPLEXITIES:
            assert kept[name][key] == first[name][key]


@pytest.mark.slow
def test_the_report_stands_alone(demo):
    page = (demo / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)  # nothing is loaded from elsewhere
    assert "<svg" in page
    assert "{{" not in page
    figures = json.loads((demo / "stdout.json").read_text())
    for name in ("dense", "lpa"):
        assert f"{figures[name]['test_perplexity']:.2f}" in page
        assert f"{figures[name]['parameters'] / 1e6:.2f}M" in page
    ratio = figures["lpa"]["test_perplexity"] / figures["dense"]["test_perplexity"]
    assert f"<td>{ratio:.3f}</td>" in page


def test_nothing_is_overwritten_that_is_not_named(lpa, tmp_path):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    finished = lpa("demo", "--overwrite", cwd=tmp_path)
    assert finished.code == 2
    assert finished.stderr == "lpa: error: --overwrite: works only with --out\n"
    assert not list((tmp_path / "runs" / "demo").iterdir())


def test_a_directory_that_exists_is_spared(lpa, tmp_path):
    (tmp_path / "precious").write_text("mine")
    for flags in ([], ["--overwrite"]):
        finished = lpa("demo", "--out", tmp_path, *flags)
        assert finished.code == 2
        assert finished.stderr.count("\n") == 1
        assert str(tmp_path) in finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.slow
def test_one_model_that_fails_ends_the_other(prepared, tmp_path, lpa, monkeypatch):
    fork_workers(lpa, monkeypatch)
    with pytest.raises(UserError, match=r"training dense: .*optim\.lr.*dense\.log"):
        train_both(tmp_path, prepared, {"dense": -1.0, "lpa": 1e-3}, steps=1_000_000)
    assert not (tmp_path / "lpa" / "result.json").exists()


def test_no_steps_are_refused(lpa, tmp_path):
    finished = lpa("demo", "--out", tmp_path / "out", "--steps", 0)
    assert finished.code == 2
    assert "--steps: got 0; expected a whole number from 1 to" in finished.stderr
    assert not (tmp_path / "out").exists()


def test_a_demonstration_that_was_removed_in_part_can_be_overwritten(tmp_path, monkeypatch):
    """Removing it ends at each of its entries in turn."""
    out = tmp_path / "out"
    files = ("data/manifest.json", "dense/config.yaml", "lpa/config.yaml", "result.json")
    remove = outputs_module.remove
    for number in range(len(files)):
        demo_module._MARKER.save(out)
        for name in files:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text("")
        calls = iter(range(number + 1))  # the first is of what an earlier process left

        def remove_some(entries, calls=calls):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            remove(entries)

        monkeypatch.setattr(outputs_module, "remove", remove_some)
        with pytest.raises(KeyboardInterrupt):
            run_demo(out, overwrite=True)
        check_output_directory(out, demo_module._MARKER.kind, overwrite=True)
