"""LPA models of which further projections are factorized."""

import json

import pytest
import torch
from helpers.small_models import small_llama, small_model
from transformers import AutoModelForCausalLM

import lpa
from lpa.convert.factorize import factorize
from lpa.convert.merge import merge_directory
from lpa.errors import UserError
from lpa.model import LPAForSequenceClassification, LPAModel
from lpa.model.plan import kv_cache_bytes, parameter_breakdown
from lpa.model.surgery.projections import find_projections

pytestmark = pytest.mark.filterwarnings("ignore::lpa.errors.LPAWarning")
IDS = torch.randint(97, (3, 24), generator=torch.Generator().manual_seed(0))


def assert_plain_lpa_model(model, directory, attention, ffn):
    """A directory holds the model, whose configuration alone says the ranks of its projections."""
    again = lpa.load(directory)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(directory)(IDS).logits, model(IDS).logits
    )
    fields = json.loads((directory / "config.json").read_text())
    assert not {"quantization_config", "fusion_config"} & fields.keys()
    config = again.config
    assert {config.projection_rank("v_proj", layer) for layer in (0, 1)} == {attention}
    assert {config.projection_rank("down_proj", layer) for layer in (0, 1)} == {ffn}
    assert parameter_breakdown(config)["total"] == again.num_parameters()


@pytest.mark.parametrize("placement", ["none", "attention"])
def test_a_directory(placement, run, tmp_path):
    small_model(placement=placement, vocab_size=300).save_pretrained(tmp_path / "source")
    for file in (run / "final").glob("*token*"):
        (tmp_path / "source" / file.name).write_bytes(file.read_bytes())
    result = lpa.factorize(tmp_path / "source", "ffn", rank=4, out=tmp_path / "out")
    attention = 8 if placement == "attention" else None
    assert_plain_lpa_model(lpa.load(tmp_path / "out"), tmp_path / "out", attention, 4)
    assert result.model_class == "LPAForCausalLM"
    assert (
        result.kv_bytes_per_token == kv_cache_bytes(lpa.load(tmp_path / "out").config, 4)["latent"]
    )
    merged = lpa.merge(lpa.load(tmp_path / "out"))
    torch.testing.assert_close(
        merged(IDS).logits, lpa.load(tmp_path / "out")(IDS).logits, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("method", ["svd", "svd-llm-update"])
def test_full_rank_is_exact(method):
    model = small_model(placement="none")
    before = model(IDS).logits
    ranks = dict.fromkeys(find_projections(model, "all"), 32)
    result, _ = factorize(model, ranks, method, IDS)
    torch.testing.assert_close(result(IDS).logits, before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("placement", ["none", "attention"])
def test_a_live_model(placement, tmp_path):
    model = small_model(placement=placement)
    lpa.factorize(model, "ffn", rank=4)
    model.save_pretrained(tmp_path)
    assert_plain_lpa_model(model, tmp_path, 8 if placement == "attention" else None, 4)
    if placement == "none":
        lpa.factorize(model, rank=8)
    options = {"max_new_tokens": 4, "do_sample": False}
    tokens = model.generate(IDS, **options)
    assert torch.equal(model.generate(IDS, cache_implementation="latent", **options), tokens)


def test_layers_that_were_kept_dense():
    model = small_model(dense_layers=[0])
    lpa.factorize(model, "attention", rank=4)
    assert model.config.ranks["v_proj"] == [4, 8]
    assert model.config.ranks["up_proj"] is None


@pytest.mark.parametrize("build", [small_model, small_llama])
def test_a_head_of_its_own_survives_a_configuration_that_ties_it(build, tmp_path):
    """As adapters leave it that trained the head alone."""
    model = build(placement="none") if build is small_model else build()
    model.config.tie_word_embeddings = True
    model.save_pretrained(tmp_path / "source")
    ids = IDS[:, :16]
    loaded = lpa.load(tmp_path / "source")
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    ranks = {name: min(m.weight.shape) for name, m in find_projections(loaded).items()}
    factorized, figures = factorize(loaded, ranks, "svd")
    assert figures.model_class == "LPAForCausalLM"
    factorized.save_pretrained(tmp_path / "factorized")
    merge_directory(tmp_path / "factorized", tmp_path / "merged")
    for again in (factorized, lpa.load(tmp_path / "factorized"), lpa.load(tmp_path / "merged")):
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-4, rtol=0)


def test_merging_a_live_model_keeps_a_head_of_its_own():
    model = small_model()
    model.config.tie_word_embeddings = True
    merged = lpa.merge(model)
    torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, atol=1e-4, rtol=0)


def test_a_live_classifier(tmp_path):
    model = LPAForSequenceClassification(small_model(placement="none").config).eval()
    lpa.factorize(model, rank=4)
    model.save_pretrained(tmp_path)
    again = LPAForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(IDS[:1]).logits, model(IDS[:1]).logits)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        (
            {"decoder_type": "paper"},
            {"placement": "ffn"},
            r"decoder_type: got paper; expected llama",
        ),
        (
            {"low_rank_method": "cola"},
            {"placement": "ffn"},
            r"low_rank_method: got cola; expected null",
        ),
        ({"low_rank_method": "sltrain"}, {"placement": "ffn"}, r"got sltrain; expected null"),
        ({}, {"projections": "lm_head"}, r"--projections: lm_head is no projection of a layer"),
    ],
)
def test_what_the_configuration_cannot_say_is_refused(fields, options, message):
    model = small_model(**fields)
    modules, config = dict(model.named_modules()), model.config.to_dict()
    with pytest.raises(UserError, match=message):
        lpa.factorize(model, rank=4, **options)
    with pytest.raises(UserError, match=message):
        factorize(model, dict.fromkeys(find_projections(model, **options), 4), "svd")
    assert dict(model.named_modules()) == modules
    assert model.config.to_dict() == config


@pytest.mark.parametrize("model_class", [LPAForSequenceClassification, LPAModel])
def test_only_a_causal_language_model_merges(model_class):
    with pytest.raises(UserError, match=f"is a {model_class.__name__}; expected an LPAForCausalLM"):
        lpa.merge(model_class(small_model().config))
