"""A rank is recommended by what is known, and each record that is given changes it for a stated reason."""

import json
import math

import numpy as np
import pytest

from lpa.errors import UserError
from lpa.model import preset_config
from lpa.model.configuration_lpa import ATTENTION_PROJECTIONS
from lpa.study.planning.plan import plan
from lpa.study.planning.recommendation import recommend_rank

CONFIG = preset_config("nano")  # of width 256


def write_bench(path, measured, flops=128.0):
    path.write_text(json.dumps({"break_even_rank": {"flops": flops, "measured": measured}}))
    return path


def write_analysis(folder, directions, *, shape=(256, 256), rank=None):
    """Spectra with so many equal singular values, of which nine tenths hold 90% of the energy."""
    values = np.r_[np.ones(directions), np.zeros(256 - directions)].tolist()
    spectra = [
        {"name": name, "shape": shape, "rank": rank, "singular_values": values, "layer": 0}
        for name in (*ATTENTION_PROJECTIONS, "gate_proj")
    ]
    folder.mkdir(exist_ok=True)
    (folder / "analysis.json").write_text(json.dumps({"spectra": spectra, "model": "runs/dense"}))
    return folder


def test_without_records_it_is_a_quarter_of_the_width():
    found = recommend_rank(CONFIG, seq_len=256)
    assert found.rank == 64
    assert found.reasons[-1].startswith("rank 64 takes 97.3% of the dense parameters")


@pytest.mark.parametrize(("directions", "rank"), [(8, 32), (100, 88), (250, 120)])
def test_spectra_move_it_between_an_eighth_and_below_the_break_even(tmp_path, directions, rank):
    found = recommend_rank(CONFIG, seq_len=256, analysis=write_analysis(tmp_path / "a", directions))
    assert found.rank == rank
    assert f"{math.ceil(0.9 * directions)} singular values hold 90%" in found.reasons[1]


@pytest.mark.parametrize(
    ("measured", "rank", "words"),
    [(48.0, 48, "above 48 a pair is slower"), (128.0, 64, "faster"), (0.0, 64, "no rank made")],
)
def test_a_measured_break_even_bounds_it(tmp_path, measured, rank, words):
    found = recommend_rank(CONFIG, seq_len=256, bench=write_bench(tmp_path / "b.json", measured))
    assert found.rank == rank
    assert any(words in reason for reason in found.reasons)


def test_records_of_other_models_are_refused(tmp_path):
    analysis, bench = tmp_path / "a", tmp_path / "b.json"
    with pytest.raises(UserError, match="its q_proj is 512 × 256; expected 256 × 256"):
        recommend_rank(CONFIG, seq_len=64, analysis=write_analysis(analysis, 9, shape=(512, 256)))
    with pytest.raises(UserError, match="is of low rank; expected a dense run"):
        recommend_rank(CONFIG, seq_len=64, analysis=write_analysis(analysis, 9, rank=8))
    with pytest.raises(UserError, match="breaks even at rank 384; expected 128"):
        recommend_rank(CONFIG, seq_len=64, bench=write_bench(bench, 48.0, flops=384.0))
    bench.write_text("{}")
    with pytest.raises(UserError, match=r"b.json: break_even_rank: is missing"):
        recommend_rank(CONFIG, seq_len=64, bench=bench)
    with pytest.raises(UserError, match="--bench: works only with --recommend"):
        plan("nano", bench=bench)


def test_the_vocabulary_is_that_of_the_data_or_the_given_one(prepared):
    of_data, given = plan("nano", data=prepared), plan("nano", vocab_size=300)
    assert of_data == given
    assert of_data.plan.parameters["embedding"] == 300 * 256
    with pytest.raises(UserError, match="--vocab-size: works only without --data"):
        plan("nano", data=prepared, vocab_size=300)


def test_the_command_reads_what_the_others_write(lpa, tmp_path):
    words = "--seq-len 8 --batch-size 1 --rounds 1 --json --device cpu --dtype float32"
    (tmp_path / "bench.json").write_text(lpa("bench", "nano", *words.split()).stdout)
    line = "plan nano --vocab-size 300 --recommend --bench bench.json"
    exact = lpa(*line.split(), "--json", cwd=tmp_path).json["recommendation"]
    shown = lpa(*line.split(), cwd=tmp_path).stdout
    assert f"recommended rank of attention: {exact['rank']}" in shown
    assert all(reason in shown for reason in exact["reasons"])
