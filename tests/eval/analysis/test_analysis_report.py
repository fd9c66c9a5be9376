import re

import numpy as np
from matplotlib.figure import Figure

from lpa.eval.analysis.analysis_report import _truncations, write_analysis_page


def spectrum(sublayer, name, entropy_rank):
    return {
        "layer": 0,
        "name": name,
        "sublayer": sublayer,
        "shape": [32, 32],
        "rank": None,
        "entropy_rank": entropy_rank,
        "stable_rank": 2.0,
        "singular_values": [3.0, 2.0, 1.0],
    }


def test_projections_of_one_name_in_both_sublayers_stay_apart(tmp_path):
    spectra = [spectrum("attention", "c_proj", 11.0), spectrum("ffn", "c_proj", 23.0)]
    analysis = {"model": "gpt2", "data": None, "spectra": spectra, "heads": [], "truncations": []}
    write_analysis_page(tmp_path / "report.html", analysis)
    page = (tmp_path / "report.html").read_text()
    rows = re.findall(r"<td>(\w+)</td><td>c_proj</td>.*<td>(\d+\.\d)</td><td>2\.0</td>", page)
    assert rows == [("attention", "11.0"), ("ffn", "23.0")]


def test_the_map_of_truncations_has_a_row_for_each():
    truncations = [
        {"layer": 0, "name": "c_proj", "sublayer": sublayer, "rank": 4, "loss_increase": increase}
        for sublayer, increase in (("attention", 0.25), ("ffn", 0.5))
    ]
    figure = Figure()
    _truncations(figure, truncations)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["0 attention c_proj", "0 ffn c_proj"]
    assert np.array_equal(figure.axes[0].images[0].get_array(), [[0.25], [0.5]])


def test_a_model_of_more_projections_than_colors_is_drawn(tmp_path):
    spectra = [spectrum("ffn", f"mlp.experts.{number}.up_proj", 8.0) for number in range(22)]
    analysis = {"model": "moe", "data": None, "spectra": spectra, "heads": [], "truncations": []}
    write_analysis_page(tmp_path / "report.html", analysis)
    assert "<svg" in (tmp_path / "report.html").read_text()
