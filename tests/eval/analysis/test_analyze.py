import json
import math
import re
import shutil

import pytest
from helpers.small_models import save_small_bloom
from safetensors.torch import load_file, save_file

from lpa.errors import UserError
from lpa.eval.analysis.analyze import analyze
from lpa.eval.perplexity import evaluate_perplexity

# In one worker: they share what takes long to make.
pytestmark = pytest.mark.xdist_group("analysis")


@pytest.fixture(scope="module")
def analysis(run, prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("analysis") / "out"
    return analyze(run, out, data=prepared, tokens=4000, ranks=[2, 16], device="cpu"), out


def test_numbers_and_page_hold_the_same(analysis):
    result, out = analysis
    kept = json.loads((out / "analysis.json").read_text())
    assert kept["loss"] == result.loss
    assert len(kept["spectra"]) == 14
    attention = [s for s in kept["spectra"] if s["sublayer"] == "attention"]
    assert {(s["rank"], len(s["singular_values"])) for s in attention} == {(8, 8)}
    assert all(1 <= s["stable_rank"] <= s["entropy_rank"] <= 32 + 1e-9 for s in kept["spectra"])
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 4
    assert f"{result.loss:.4f}" in page
    assert not re.search(r"(src|href)=.https?://", page)  # works from a file


def test_the_loss_is_that_of_eval_perplexity(analysis, run, prepared, tmp_path):
    result, _ = analysis
    whole = evaluate_perplexity(run, prepared, device="cpu")
    assert result.tokens == 4000 < whole.tokens
    everything = analyze(
        run, tmp_path / "all", data=prepared, tokens=10**9, ranks=[32], device="cpu"
    )
    assert everything.loss == pytest.approx(whole.loss, rel=1e-5)
    assert everything.truncations == []  # nothing has a rank above 32


def test_only_truncations_that_remove_something_are_measured(analysis):
    result, _ = analysis
    # The pairs have rank 8, so nothing of them is left to truncate at 16.
    assert {
        truncation.rank for truncation in result.truncations if truncation.sublayer == "attention"
    } == {2}
    assert {
        truncation.rank for truncation in result.truncations if truncation.sublayer == "ffn"
    } == {2, 16}
    together = [
        (truncation.name, truncation.rank)
        for truncation in result.truncations
        if truncation.layer is None
    ]
    assert together == [("attention", 2), ("ffn", 2), ("ffn", 16)]
    assert all(
        math.isclose(truncation.loss - result.loss, truncation.loss_increase, abs_tol=1e-12)
        for truncation in result.truncations
    )


def test_without_text_the_spectra_alone(run, tmp_path):
    result = analyze(run, tmp_path / "out", device="cpu")
    assert (result.heads, result.truncations, result.loss) == (None, None, None)
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 1


def test_a_model_that_states_no_positions_needs_a_context_for_a_text_alone(run, prepared, tmp_path):
    bloom = save_small_bloom(run, tmp_path / "bloom")
    assert analyze(bloom, tmp_path / "spectra", device="cpu").spectra
    options = {"data": prepared, "tokens": 200, "ranks": [4], "device": "cpu"}
    with pytest.raises(UserError, match="--seq-len: got none"):
        analyze(bloom, tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()
    assert analyze(bloom, tmp_path / "whole", seq_len=40, **options).seq_len == 40


@pytest.mark.parametrize("name", ["self_attn.q_proj.down.weight", "mlp.up_proj.weight"])
def test_a_model_that_diverged_is_refused_with_the_projection(run, tmp_path, name):
    broken = tmp_path / "model"
    shutil.copytree(run / "final", broken)
    tensors = load_file(broken / "model.safetensors")
    tensors[f"model.layers.1.{name}"][0, 0] = math.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    projection = ".".join(name.split(".")[:2])
    message = rf"model.layers.1.{projection}.weight has 1 entries that are NaN or infinite"
    with pytest.raises(UserError, match=message):
        analyze(broken, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ranks": [0]}, "--ranks: got 0; expected at least 1"),
        ({"tokens": 1}, "--tokens: got 1; expected at least 2"),
        ({"seq_len": 33}, "--seq-len: got 33; expected from 1 to 32"),
    ],
)
def test_a_bad_value_is_refused_and_nothing_written(run, prepared, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        analyze(run, tmp_path / "out", data=prepared, device="cpu", **fields)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": "typo.txt"}, "typo.txt: no such file"),
        ({"split": "tset"}, "split: the data has no 'tset'"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_before_the_spectra(
    run, prepared, tmp_path, fields, message
):
    steps = []
    with pytest.raises(UserError, match=message):
        analyze(
            run,
            tmp_path / "out",
            **({"data": prepared} | fields),
            device="cpu",
            on_progress=lambda what, done, total: steps.append(what),
        )
    assert not steps
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields", [{"ranks": [4]}, {"tokens": 99}, {"split": "test"}, {"seq_len": 9}]
)
def test_what_concerns_a_text_is_refused_without_one(run, tmp_path, fields):
    name = next(iter(fields)).replace("_", "-")
    with pytest.raises(UserError, match=f"^--{name}: works only with --data$"):
        analyze(run, tmp_path / "out", device="cpu", **fields)
    assert list(tmp_path.iterdir()) == []
