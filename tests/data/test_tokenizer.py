import json
import shutil

import pytest

from lpa.data import load_tokenizer
from lpa.data.tokenizer import plain_tokenizer, tokenizer_hash


@pytest.fixture
def directory(prepared, tmp_path):
    return shutil.copytree(prepared / "tokenizer", tmp_path / "tokenizer")


def test_what_prepare_wrote_opens_without_transformers_to_the_same_tokenizer(directory, tmp_path):
    plain, whole = plain_tokenizer(directory), load_tokenizer(directory)
    assert plain.eos_token_id == whole.eos_token_id
    assert len(plain) == len(whole)
    assert tokenizer_hash(plain) == tokenizer_hash(whole)
    plain.save_pretrained(tmp_path / "copy")
    assert tokenizer_hash(load_tokenizer(tmp_path / "copy")) == tokenizer_hash(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_class": "LlamaTokenizer"},
        {"add_bos_token": True},
        {"eos_token": "<not there>"},
        {"eos_token": None},
    ],
)
def test_what_transformers_might_change_is_left_to_it(directory, change):
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | change))
    assert plain_tokenizer(directory) is None


def test_other_files_may_say_more(directory):
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    assert plain_tokenizer(directory) is None
    assert plain_tokenizer(directory / "gone") is None
