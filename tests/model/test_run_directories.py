"""What transformers says of a run directory, whose model lies one folder below."""

import pytest
from helpers.small_models import small_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2LMHeadModel,
)

import lpa
from lpa.model import LPAConfig, LPAForCausalLM


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    (directory / "config.yaml").write_text("out: run\n")
    small_model().save_pretrained(directory / "final")
    return directory


@pytest.mark.parametrize("as_text", [str, lambda path: path], ids=["text", "path"])
@pytest.mark.parametrize(
    "opener",
    [
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        LPAConfig,
        LPAForCausalLM,
        GPT2LMHeadModel,
    ],
    ids=lambda opener: opener.__name__,
)
def test_the_error_says_what_to_open(run_directory, opener, as_text):
    with pytest.raises(lpa.UserError) as error:
        opener.from_pretrained(as_text(run_directory))
    message = str(error.value)
    assert "\n" not in message
    assert f"{run_directory / 'final'}" in message
    assert "lpa.load" in message
    opened = opener.from_pretrained if opener is not GPT2LMHeadModel else lpa.load
    opened(as_text(run_directory / "final"))


def test_other_directories_are_left_to_transformers(tmp_path):
    with pytest.raises(ValueError, match=r"Should have a `model_type` key in its config\.json"):
        AutoConfig.from_pretrained(tmp_path)
