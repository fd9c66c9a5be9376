"""What stands before and after each document, as far as the tokenizer sets something."""

import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from helpers.small_runs import small_config
from helpers.tokenizer_kinds import save_with_bos
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from lpa.data import Manifest, bundled_corpus, load_split_tokens, prepare
from lpa.data.document_limits import document_bos_token, encode_prompt
from lpa.data.preparation import encode_jobs
from lpa.data.stats import decode_documents
from lpa.data.tokenizer import load_tokenizer, verify_tokenizer
from lpa.errors import LPAWarning
from lpa.eval.loading import load_with_tokenizer
from lpa.eval.perplexity import evaluate_perplexity
from lpa.eval.tokenized_text import load_text
from lpa.train.run import train

BOS = 300  # after the tokens of `prepared`
TEXTS = ["one", "", "two words", "much text, " * 1500 + "to the end", "last"]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def tokenizer(prepared, tmp_path):
    assert save_with_bos(prepared / "tokenizer", tmp_path / "tokenizer") == BOS
    return tmp_path / "tokenizer"


def prepared_with(tokenizer, source, out, **options):
    return prepare([source], out, tokenizer=tokenizer, **{"validation_fraction": 0.0, **options})


@pytest.mark.parametrize("job_characters", [2**21, 2000])
def test_each_document_is_what_transformers_makes_of_it(
    tokenizer, source, tmp_path, monkeypatch, job_characters
):
    """Also where chunks and jobs end within a document."""
    monkeypatch.setattr(encode_jobs, "JOB_CHARACTERS", job_characters)
    manifest = prepared_with(tokenizer, source, tmp_path / "data")
    reference = AutoTokenizer.from_pretrained(tokenizer)
    expected: list[int] = []
    for text in filter(None, TEXTS):
        expected += [*reference(text)["input_ids"], reference.eos_token_id]
    assert expected.count(BOS) == 4
    assert load_split_tokens(tmp_path / "data", "train").tolist() == expected
    assert manifest.bos_token_id == BOS
    assert Manifest.load(tmp_path / "data") == manifest
    assert list(decode_documents(tmp_path / "data", "train")) == list(filter(None, TEXTS))


def test_a_part_that_is_held_out_begins_as_a_document_does(tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("many words of text\n" * 2000)
    manifest = prepared_with(
        tokenizer, tmp_path / "text.txt", tmp_path / "data", validation_fraction=0.1
    )
    for split in ("train", "validation"):
        tokens = load_split_tokens(tmp_path / "data", split)
        places = (tokens == manifest.bos_token_id).nonzero()[0]
        assert places.tolist() == [0]


def test_the_end_of_one_document_is_not_set_twice(prepared, source, tmp_path):
    """OPT's tokenizer puts its end-of-text token before a text."""
    save_with_bos(prepared / "tokenizer", tmp_path / "tokenizer", bos="<|endoftext|>")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert document_bos_token(tokenizer) is None
    assert encode_prompt(tokenizer, "a")[0] == tokenizer.eos_token_id
    manifest = prepared_with(tmp_path / "tokenizer", source, tmp_path / "data")
    tokens = load_split_tokens(tmp_path / "data", "train")
    assert manifest.bos_token_id is None
    assert (tokens == tokenizer.eos_token_id).sum() == 4


def test_work_begun_without_the_token_is_encoded_again(prepared, tokenizer, source, tmp_path):
    def stop(what, done, total):
        if what == "writing shards":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared_with(tokenizer, source, tmp_path / "data", on_progress=stop)
    assert list(tmp_path.glob(".data.partial*/jobs/*.npy"))
    backend = json.loads((tokenizer / "tokenizer.json").read_text())
    (tokenizer / "tokenizer.json").write_text(json.dumps({**backend, "post_processor": None}))
    with pytest.warns(LPAWarning, match="has changed since this preparation was started"):
        manifest = prepared_with(tokenizer, source, tmp_path / "data")
    assert manifest.bos_token_id is None
    assert BOS not in load_split_tokens(tmp_path / "data", "train")


def test_data_of_an_earlier_version_are_named(tokenizer, source, tmp_path):
    data = tmp_path / "data"
    manifest = prepared_with(tokenizer, source, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verify_tokenizer(data, manifest)
    fields = json.loads((data / "manifest.json").read_text())
    del fields["bos_token_id"]  # as an earlier version wrote it
    (data / "manifest.json").write_text(json.dumps(fields))
    with pytest.warns(LPAWarning, match=f"no document begins with token {BOS}"):
        verify_tokenizer(data, Manifest.load(data))


def test_a_model_learns_the_token_and_says_so(tokenizer, source, tmp_path):
    """In training, in what it is evaluated on, and in the files that other tools read."""
    prepared_with(tokenizer, source, tmp_path / "data", validation_fraction=0.2)
    run = tmp_path / "run"
    train(small_config(tmp_path / "data", steps=2), run)
    assert AutoConfig.from_pretrained(run / "final").bos_token_id == BOS
    assert GenerationConfig.from_pretrained(run / "final").bos_token_id == BOS
    assert AutoTokenizer.from_pretrained(run / "final")("a")["input_ids"][0] == BOS
    (tmp_path / "train.jsonl").write_text(
        "".join(
            json.dumps({"text": text}) + "\n"
            for text in decode_documents(tmp_path / "data", "train")
        )
    )
    for mode in ("blocks", "documents"):
        of_data, of_text = (
            evaluate_perplexity(run, place, split=split, mode=mode, device="cpu")
            for place, split in ((tmp_path / "data", "train"), (tmp_path / "train.jsonl", None))
        )
        assert of_data.tokens == of_text.tokens
        assert of_data.loss == of_text.loss


def test_a_text_that_spells_the_token_does_not_begin_twice(tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("<s>some text")
    for parse in (True, False):
        prepared_with(
            tokenizer, tmp_path / "text.txt", tmp_path / str(parse), parse_special_tokens=parse
        )
        tokens = load_split_tokens(tmp_path / str(parse), "train")
        assert (tokens == BOS).sum() == 1
        assert tokens[0] == BOS


def test_a_token_counts_whatever_the_settings_call_it(tokenizer, source, tmp_path):
    """As transformers sets it too."""
    settings = tokenizer / "tokenizer_config.json"
    fields = json.loads(settings.read_text())
    for changed in (
        {name: value for name, value in fields.items() if name != "bos_token"},
        {**fields, "bos_token": None, "cls_token": "<s>"},
    ):
        settings.write_text(json.dumps(changed))
        assert document_bos_token(load_tokenizer(tokenizer)) == BOS
    settings.unlink()
    manifest = prepared_with(tokenizer / "tokenizer.json", source, tmp_path / "data")
    assert manifest.bos_token_id == BOS


def test_data_of_an_earlier_version_are_scored_as_their_text_is(prepared, tokenizer, tmp_path):
    """They hold no token before documents; the tokenizer sets it all the same."""
    plain = prepared_with(prepared / "tokenizer", bundled_corpus("test"), tmp_path / "plain")
    manifest = prepared_with(tokenizer, bundled_corpus("test"), tmp_path / "data")
    opened = load_tokenizer(tokenizer)
    expected = load_text(tmp_path / "data", "train", opened)
    old = replace(plain, tokenizer_sha256=manifest.tokenizer_sha256, vocab_size=manifest.vocab_size)
    old.save(tmp_path / "plain")
    found = load_text(tmp_path / "plain", "train", opened)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.ends.tolist() == expected.ends.tolist()
    assert found.bos_token_id == expected.bos_token_id == BOS


def test_a_model_that_never_saw_the_token_is_named(tokenizer, run, tmp_path):
    model = shutil.copytree(run / "final", tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LPAWarning)
        load_with_tokenizer(model, "cpu")
    config = json.loads((model / "config.json").read_text())
    for file in tokenizer.iterdir():
        shutil.copy(file, model)
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": BOS + 1}))
    weights = load_file(model / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = torch.cat([weights[name], weights[name][:1]])
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(LPAWarning, match=f"puts token {BOS} before a text"):
        load_with_tokenizer(model, "cpu")
