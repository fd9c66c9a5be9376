"""The card that every command leaves beside a model."""

import re
import shutil

import pytest
import yaml
from helpers.architectures import tiny
from helpers.small_models import small_model
from huggingface_hub import ModelCard

import lpa
from lpa.model.hub.model_card import CARD_FILE, CardContent, facts_of_card, write_model_card
from lpa.train.result import RunResult

pytestmark = pytest.mark.filterwarnings("ignore::lpa.errors.LPAWarning")


def written(model, directory, **fields):
    write_model_card(model, directory, CardContent("small", "It was made for a test.", **fields))
    return ModelCard.load(directory / CARD_FILE)


def test_the_card_of_a_run_says_what_the_run_says(run):
    card = ModelCard.load(run / "final" / CARD_FILE)
    result = RunResult.load(run)
    table = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", card.text, re.MULTILINE))
    assert table["Parameters"] == f"{result.parameters:,}"
    assert f"{result.tokens:,} tokens in {result.steps:,} steps" in table["Trained on"]
    flops = result.tokens * result.train_flops_per_token
    assert float(table["Training FLOPs"]) == pytest.approx(flops, rel=0.005)
    found = re.match(
        r"([\d.]+) \(95% interval ([\d.]+) to ([\d.]+)\) per token", table["Validation perplexity"]
    )
    value, low, high = map(float, found.groups())
    assert value == pytest.approx(result.validation.perplexity, abs=0.01)
    half = 1.96 * result.validation.standard_error
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.02)
    assert 0 < half < value / 10
    assert table == facts_of_card(run / "final")
    assert card.data.eval_results[0].metric_value == round(result.validation.perplexity, 4)
    assert card.data.library_name == "transformers"
    assert card.data.license is None
    assert "License" in card.text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1])
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert "/" not in recipe["data"].pop("path")  # where the data was is nobody's business
    del config["data"]["path"]
    assert recipe == config


def test_a_merged_model_tells_of_its_parent(run, tmp_path):
    lpa.merge(run, tmp_path / "dense")
    card = ModelCard.load(tmp_path / "dense" / CARD_FILE)
    facts, parents = facts_of_card(tmp_path / "dense"), facts_of_card(run / "final")
    assert facts["Made of"] == run.name
    assert facts[f"Validation perplexity ({run.name})"] == parents["Validation perplexity"]
    assert "trust_remote_code" not in card.text


def test_a_converted_model_tells_how(tmp_path, prepared):
    tiny("llama").save_pretrained(tmp_path / "dense")
    shutil.copytree(prepared / "tokenizer", tmp_path / "dense", dirs_exist_ok=True)
    result = lpa.factorize(tmp_path / "dense", rank=8, out=tmp_path / "low")
    facts = facts_of_card(tmp_path / "low")
    assert facts["Method"] == "svd"
    assert facts["Made of"] == "dense"
    assert facts["Parameters"] == f"{result.parameters:,}"
    assert facts["Parameters before"] == f"{result.parameters_dense:,}"


@pytest.mark.parametrize(
    ("make", "ways"),
    [
        (lambda: small_model(), ("import lpa", "trust_remote_code=True", "lpa convert merge")),
        (lambda: small_model(decoder_type="paper"), ("import lpa", "trust_remote_code=True")),
        (lambda: small_model(low_rank_method="cola"), ("import lpa", "trust_remote_code=True")),
        (lambda: tiny("llama"), ()),
    ],
)
def test_the_card_names_the_ways_to_load_the_model(tmp_path, make, ways):
    text = written(make(), tmp_path).text
    for way in ("import lpa", "trust_remote_code=True", "lpa convert merge"):
        assert (way in text) == (way in ways), way


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"placement": "none"}, "projections are dense"),
        ({"dense_layers": [0, 1]}, "projections are dense"),
        ({}, "low-rank projections are those of attention (rank 8)"),
        (
            {"placement": "ffn", "ffn_rank": 24},
            "low-rank projections are those of the feed-forward network (rank 24)",
        ),
        (
            {"placement": "all", "ffn_rank": 4},
            "are those of attention (rank 8) and those of the feed-forward network (rank 4)",
        ),
        (
            {"placement": "none", "ranks": {"up_proj": 8}},
            "low-rank projections are up_proj (rank 8)",
        ),
        (
            {"ranks": {"q_proj": [4, 16], "k_proj": None}},
            "low-rank projections are q_proj, v_proj, o_proj (ranks 4 to 16)",
        ),
        (
            {"ranks": {"q_proj": [None, 4]}, "low_rank_method": "cola"},
            "low-rank projections (CoLA) are q_proj (rank 4, 1 of 2 layers) and k_proj, v_proj, o_proj "
            "(rank 8)",
        ),
        ({"dense_layers": [0]}, "are those of attention (rank 8, 1 of 2 layers)"),
    ],
)
def test_the_summary_says_which_projections_are_low_rank(tmp_path, fields, said):
    assert f"{said}. It was made for a test." in written(small_model(**fields), tmp_path).text


def test_names_with_markup_stay_in_their_cell(tmp_path):
    fact = "a|b\n| c --- d: {{ e }}\n---\nlicense: mit"
    card = written(small_model(), tmp_path, facts={"Text": fact})
    assert facts_of_card(tmp_path)["Text"] == fact
    assert card.data.license is None
    assert r"| Text | a\|b \| c --- d: {{ e }} --- license: mit |" in card.text


def test_a_readme_of_somebody_else_has_no_facts(tmp_path):
    for text in (
        "",
        "# A model",
        "---\nlicense: mit\n---\n# A",
        "---\n[\n---\n",
        "---\nlpa_facts: 3\n---\n",
    ):
        (tmp_path / CARD_FILE).write_text(text)
        assert facts_of_card(tmp_path) == {}
