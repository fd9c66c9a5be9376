import json
import re

import pytest
from helpers.study_runs import rival_study

from lpa.study.report.rivals_section import compare_rivals
from lpa.study.report.study_report import write_study_report
from lpa.study.results.statistics import Summary
from lpa.study.results.study_results import read_scores


@pytest.fixture
def studies():
    """Three lengths, LPA worth half as many FLOPs again, with a further score of each run."""
    found = [rival_study(length, 1.5) for length in (20, 2, 6)]
    for result in found:
        for row in result.rows:
            row.perplexity = Summary.from_values(list(row.perplexities.values()))
            row.seconds = row.memory_bytes = 1.0
            row.tokens_per_second = Summary.from_values([1.0])
            row.scores = {"minimal-pairs": {0: 0.6, 1: 0.7, 2: 0.8}}
    return found


def test_the_table_has_every_variant_at_every_length_and_the_known_gain(studies):
    [comparison] = compare_rivals(studies)
    cells = comparison.cells()
    assert [row[0] for row in cells] == ["dense", "LPA"] * 3
    assert comparison.headings[-1] == "minimal-pairs"
    for variant, *_, gain, pairs in cells:
        expected = "1.00 [1.00, 1.00]" if variant == "dense" else "1.50 [1.50, 1.50]"
        assert gain.startswith(expected)
        assert pairs == "70.0% ± 10.0%"
    perplexities = [float(row[2].split()[0]) for row in cells]
    assert perplexities == sorted(perplexities, reverse=True)
    interpolated = comparison.interpolated_cells()
    assert [row[0] for row in interpolated] == ["LPA"] * 3
    assert [row[2] == "–" for row in interpolated] == [True, False, False]
    assert all(row[-1].startswith("1.50 [1.50, 1.50]") for row in interpolated)


def test_the_table_says_how_many_seeds_a_figure_rests_on(studies):
    """The baseline's third seed comes last, and all gains and comparisons at its length wait for it."""
    longest = studies[0]
    dense, ours = longest.rows
    dense.missing = [2]
    del dense.perplexities[2], ours.scores["minimal-pairs"][2]
    [comparison] = compare_rivals(studies)
    two = " (2 of 3 seeds)"
    for variant, _, perplexity, tokens, _, flops, _, gain, pairs in comparison.cells():
        if variant == "LPA":
            at_20 = perplexity == comparison.cells()[-1][2]
            assert flops.endswith(two)
            assert gain.endswith(two)
            assert tokens.endswith(two) == pairs.endswith(two) == at_20
            assert "seeds" not in perplexity
    complete = compare_rivals([rival_study(length, 1.5) for length in (2, 6, 20)])[0].cells()
    assert "seeds" not in str(complete)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data_hashes", {"tokenizer": "another"}),
        ("split", "validation"),
        ("base", {"train.batch_size": 99}),
    ],
)
def test_studies_of_other_data_or_settings_are_compared_separately(studies, field, value):
    """A curve over their losses would be one over incomparable ones."""
    index = studies[0].index  # the longest
    setattr(index, field, {**index.base, **value} if field == "base" else value)
    longest, others = compare_rivals(studies)
    assert [len(comparison.rows) for comparison in (longest, others)] == [2, 4]
    assert longest.title == "Rivals of low-rank attention at tiny, in length-20"
    assert others.title == "Rivals of low-rank attention at tiny, in length-2, length-6"
    assert all(row[-2] == "–" for row in [*longest.cells(), *others.cells()])
    assert longest.interpolated_cells() == []
    assert [row[0] for row in others.interpolated_cells()] == ["LPA"] * 2


def test_the_table_is_of_the_baseline_that_is_asked_for(studies, tmp_path):
    del studies[0].rows[1]  # the longest
    [comparison] = compare_rivals(studies, "LPA")
    assert comparison.to_dict()["baseline"] == "LPA"
    cells = comparison.cells()
    assert [row[0] for row in cells] == ["dense", "LPA", "dense", "LPA", "dense"]
    assert [row[3].startswith("+") for row in cells] == [True, False, True, False, False]
    gains = ["1.00", "1.50", "1.00", "1.50", "1.00"]
    assert [row[-2][:4] for row in cells] == gains
    write_study_report(studies, tmp_path / "report.html", [comparison])
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert "At equal tokens each variant is compared with LPA" in page
    assert "a power law through the lengths of dense gives" in page
    assert compare_rivals(studies)[0].baseline == "dense"
    assert compare_rivals(studies, "nowhere") == []


def test_sections_of_one_name_say_their_length(studies, tmp_path):
    write_study_report(studies, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    sections = re.findall("<h2>(rivals .*)</h2>", page)
    assert len(set(sections)) == 3
    assert all(re.fullmatch(r"rivals at tiny, [\d.]+[KM] tokens", title) for title in sections)
    write_study_report(studies[:1], tmp_path / "one.html")
    assert "<h2>rivals at tiny</h2>" in (tmp_path / "one.html").read_text()


def test_what_sets_the_length_alone_separates_no_studies(studies):
    for number, result in enumerate(studies):
        base = {"train.steps": number, "optim.warmup_steps": number, "checkpoint.every": number}
        result.index.base |= base
    [comparison] = compare_rivals(studies)
    assert comparison.title == "Rivals of low-rank attention at tiny"


def test_two_studies_of_one_length_that_differ_are_two_comparisons(studies):
    [*_, other] = compare_rivals([*studies, rival_study(6, 2)])
    assert other.title == "Rivals of low-rank attention at tiny, in length-6"


def test_a_study_that_tunes_is_left_out(studies):
    studies[0].index.variants[0].tunes = "dense"
    [comparison] = compare_rivals(studies)
    assert len(comparison.rows) == 4
    for result in studies:
        result.index.variants[0].tunes = "dense"
    assert compare_rivals(studies) == []


def test_the_page_shows_the_table_and_the_figure(studies, tmp_path):
    write_study_report(studies, tmp_path / "report.html", compare_rivals(studies))
    page = (tmp_path / "report.html").read_text()
    assert "Rivals of low-rank attention at tiny" in page
    assert len(re.findall(r"1\.50 \[1\.50, 1\.50\]", page)) == 2 * 3
    assert "by straight lines" in page
    assert (tmp_path / "report-figures" / "0-rivals-tiny-1.svg").is_file()
    assert not (tmp_path / "report-figures" / "0-rivals-tiny-2.svg").exists()
    before = set((tmp_path / "report-figures").iterdir())
    write_study_report(studies, tmp_path / "report.html", compare_rivals(studies))
    assert set((tmp_path / "report-figures").iterdir()) == before
    studies[0].index.split = "validation"
    write_study_report(studies, tmp_path / "report.html", compare_rivals(studies))
    page = (tmp_path / "report.html").read_text()
    assert "Rivals of low-rank attention at tiny, in length-20<" in page
    assert "Rivals of low-rank attention at tiny, in length-2, length-6<" in page
    assert (tmp_path / "report-figures" / "0-rivals-tiny-2.svg").is_file()


def test_the_json_holds_the_judgments(studies):
    [comparison] = compare_rivals(studies)
    found = json.loads(json.dumps(comparison.to_dict()))
    assert found["scale"] == "tiny"
    assert found["directories"] == ["length-2", "length-6", "length-20"]
    ours = [judged for judged in found["judgments"] if judged["variant"] == "LPA"]
    assert len(found["judgments"]) == 2 * len(ours) == 6
    for judged in ours:
        assert judged["equal_tokens"]["ratio"] < 1
        for curve in ("fitted", "interpolated"):
            assert list(judged[curve]["gains"].values()) == pytest.approx([1.5] * 3)


def test_scores_are_read_by_their_file_names(tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "wikitext-2.json").write_text('{"perplexity": 12.5, "tokens": 3}')
    (tmp_path / "scores" / "minimal-pairs.json").write_text('{"accuracy": 1}')
    assert read_scores(tmp_path) == {"minimal-pairs": 1.0, "wikitext-2": 12.5}
    (tmp_path / "scores" / "other.json").write_text("{}")
    with pytest.raises(Exception, match=r"other\.json"):
        read_scores(tmp_path)


def test_a_seed_that_is_missing_or_failed_is_named(studies):
    row = studies[1].rows[1]
    del row.perplexities[1]
    row.missing, row.failed = [1], {1: "exit code -9: no word"}
    [comparison] = compare_rivals(studies)
    marked = [
        cells[0] for cells in comparison.cells() if cells[2].endswith(" (2 of 3 seeds, 1 failed)")
    ]
    assert marked == ["LPA"]


def test_a_comparison_in_which_a_run_diverged_says_so(studies):
    row = studies[1].rows[1]
    del row.perplexities[1]
    row.missing, row.failed = [1], {1: "training: step 3: the loss is nan"}
    [comparison] = compare_rivals(studies)
    [cells] = [cells for cells in comparison.cells() if "failed" in cells[2]]
    undecided = ["undecided (a run diverged)", "–"]
    assert cells[3:8] == [*undecided, *undecided, "–"]
    assert [row[0] for row in comparison.interpolated_cells()] == ["LPA"] * 2
    [alone] = compare_rivals(studies[1:2])
    assert alone.interpolated_cells() == []
