"""Tokens that a model has not: those of text are refused, special ones named."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, processors

from lpa.convert.factorize import load_dense
from lpa.data.text_encoder import TextEncoder
from lpa.errors import LPAWarning, UserError
from lpa.eval.generate import generate_text
from lpa.eval.loading import load_with_tokenizer


@pytest.mark.parametrize("load", [lambda path: load_with_tokenizer(path, "cpu"), load_dense])
def test_a_tokenizer_with_more_tokens_than_its_model_is_refused(run, tmp_path, load):
    model = shutil.copytree(run / "final", tmp_path / "model")
    load(model)
    path = model / "tokenizer.json"
    backend = Tokenizer.from_file(str(path))
    backend.add_tokens(["<one more>"])
    backend.save(str(path))
    with pytest.raises(
        UserError,
        match=r"its tokenizer has tokens up to id 300; expected at most 299, as the model has",
    ):
        load(model)


def with_special_token(run, out, *, settings=None, before_text=False):
    """The model of a run whose tokenizer has one special token more than the model has rows."""
    model = shutil.copytree(run / "final", out)
    path = model / "tokenizer.json"
    backend = Tokenizer.from_file(str(path))
    backend.add_special_tokens(["<image>"])
    if before_text:
        backend.post_processor = processors.TemplateProcessing(
            single="<image> $A", special_tokens=[("<image>", 300)]
        )
    backend.save(str(path))
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | (settings or {})))
    return model


@pytest.mark.parametrize("load", [lambda path: load_with_tokenizer(path, "cpu"), load_dense])
def test_special_tokens_that_a_model_has_not_are_named(run, tmp_path, load):
    """Gemma 3 has a token of images and no row for it; others have a token that pads."""
    model = with_special_token(run, tmp_path / "model", settings={"pad_token": "<image>"})
    with pytest.warns(LPAWarning, match=r"has 1 special tokens from id 300 on \(<image>\)"):
        _, tokenizer = load(model)
    assert max(TextEncoder.of(tokenizer).encode("an <image> of it")) < 300
    with (
        pytest.warns(LPAWarning, match="special tokens from id 300"),
        pytest.raises(UserError, match=r"^--prompt: the text has tokens up to id 300; expected"),
    ):
        generate_text(model, "an <image> of it", device="cpu")


@pytest.mark.parametrize("options", [{"settings": {"eos_token": "<image>"}}, {"before_text": True}])
def test_special_tokens_around_a_text_that_a_model_has_not_are_refused(run, tmp_path, options):
    model = with_special_token(run, tmp_path / "model", **options)
    with pytest.raises(UserError, match=r"its tokenizer has tokens up to id 300; expected at most"):
        load_with_tokenizer(model, "cpu")
