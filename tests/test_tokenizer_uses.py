"""Tokenizers are opened in one place, and documents encoded by one class, so that no setting slips in."""

import ast
import json
import shutil
from functools import cache
from pathlib import Path

import pytest

import lpa
from lpa.convert.calibration import calibration_windows
from lpa.data import load_split_tokens, prepare
from lpa.data.tokenizer import load_tokenizer
from lpa.eval.generate import generate_text
from lpa.eval.glue.examples import Examples
from lpa.eval.glue.tokenization import TextPairEncoder
from lpa.eval.loading import load_with_tokenizer
from lpa.eval.tokenized_text import load_text
from lpa.train.logging.samples import sample_text

SOURCE = Path(lpa.__file__).parent
# Where tokenizers are opened or made, and where they encode.
OPENS = {"data/tokenizer.py", "data/sentencepiece.py"}
ENCODES = {"data/text_encoder.py", "data/preparation/word_cache.py"}


@cache
def uses():
    """What each file names and calls, as (file, name)."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        file = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name | ast.Attribute):
                found.add((file, ast.unparse(node)))
            elif isinstance(node, ast.Call):
                found.add((file, f"{ast.unparse(node.func)}()"))
    return found


def files_that_use(*endings):
    return {file for file, name in uses() if name.endswith(endings)}


def test_tokenizers_are_opened_in_one_place():
    assert files_that_use("AutoTokenizer", "PreTrainedTokenizerFast") == OPENS
    assert files_that_use("Tokenizer.from_file", "Tokenizer.from_pretrained") == {
        "data/tokenizer.py"
    }
    assert files_that_use("Tokenizer.from_str", "Tokenizer.from_buffer") == set()


def test_documents_are_encoded_in_one_place():
    encode = ("backend.encode()", "backend_tokenizer.encode()", "tokenizer.encode()")
    batch = ("backend.encode_batch()", "tokenizer.encode_batch()", "encode_batch_fast()")
    # One finds out what a tokenizer puts around a text.
    assert files_that_use(*encode, *batch) == ENCODES | {"data/document_limits.py"}
    called = {file for file, name in uses() if name in ("tokenizer()", "self._tokenizer()")}
    # The place that opens tokenizers tries one before anyone else has it.
    assert called == {"data/tokenizer.py"}


def test_no_code_of_others_is_run_to_open_a_tokenizer():
    tree = ast.parse((SOURCE / "data/tokenizer.py").read_text(encoding="utf-8"))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "AutoTokenizer.from_pretrained"
    ]
    assert calls
    for call in calls:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options["trust_remote_code"] == "False"


END = "<|endoftext|>"
TEXT = f"My fellow citizens, the state of our union is strong.{END} And so it stays for long."

CARRIED = {
    "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 60},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": END,
    },
}


def with_carried(directory, field):
    """Let the `tokenizer.json` of a directory truncate, pad or drop out."""
    path = directory / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    if field == "dropout":
        state["model"]["dropout"] = 0.9
    else:
        state[field] = CARRIED[field]
    path.write_text(json.dumps(state), encoding="utf-8")


def prepared_tokens(model, text, folder):
    for place in (model, model / "tokenizer.json"):
        prepare([text], folder / "data", tokenizer=place, validation_fraction=0, overwrite=True)
        yield load_split_tokens(folder / "data", "train").tolist()


def sampled(model, prepared, folder):
    """What `train.sample_every` writes, with the tokenizer in the data."""
    from helpers.small_runs import small_config

    data = shutil.copytree(prepared, folder / "data")
    shutil.copytree(model, data / "tokenizer", dirs_exist_ok=True)
    config = small_config(data, steps=1, sample_every=1, sample_prompt=TEXT, sample_tokens=3)
    tokenizer = load_tokenizer(data / "tokenizer")
    return sample_text(
        load_with_tokenizer(model, "cpu")[0], tokenizer, config, folder, 1, write=False
    )


USES = {
    "eval": lambda model, text, **_: load_text(
        text, None, load_with_tokenizer(model, "cpu")[1]
    ).tokens.tolist(),
    "glue": lambda model, **_: TextPairEncoder(load_with_tokenizer(model, "cpu")[1], 100).encode(
        Examples([(TEXT, "Two."), ("One.",)], [0, 1])
    ),
    "convert": lambda model, text, **_: calibration_windows(
        text, load_with_tokenizer(model, "cpu")[1], tokens=40, seq_len=10
    ).tolist(),
    "prepare": lambda model, text, folder, **_: list(prepared_tokens(model, text, folder)),
    "generate": lambda model, **_: generate_text(
        model, "My fellow", temperature=0, max_new_tokens=5, device="cpu"
    ),
    "harness": lambda model, **_: load_with_tokenizer(model, "cpu")[1].encode(TEXT),
    "sample": lambda model, folder, prepared, **_: sampled(model, prepared, folder),
}


@pytest.mark.parametrize("use", USES)
def test_what_a_tokenizer_carries_changes_nothing(run, prepared, tmp_path, use):
    found = {}
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    for field in (None, *CARRIED, "dropout"):
        folder = tmp_path / str(field)
        model = shutil.copytree(run / "final", folder / "model")
        if field is not None:
            with_carried(model, field)
        found[field] = USES[use](model=model, text=text, folder=folder, prepared=prepared)
    for field in CARRIED | {"dropout": 0.9}:
        assert found[field] == found[None], field


@pytest.mark.parametrize("use", ["eval", "glue", "convert", "prepare"])
def test_a_special_token_that_a_text_spells_stays_text(run, prepared, tmp_path, use):
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    found = USES[use](model=run / "final", text=text, folder=tmp_path, prepared=prepared)
    end = load_with_tokenizer(run, "cpu")[1].eos_token_id
    # One after the document, one between the two texts of a pair; of the windows the first holds none.
    assert (
        str(found).count(f" {end},") + str(found).count(f" {end}]")
        == {
            "eval": 1,
            "glue": 1,
            "convert": 0,
            "prepare": 2,
        }[use]
    )
