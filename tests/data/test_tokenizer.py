import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from helpers.tokenizer_kinds import tokenizer_kind

from lpa.data import bundled_corpus, load_tokenizer, read_documents
from lpa.data import tokenizer as tokenizer_module
from lpa.data.tokenizer import (
    load_fast_tokenizer,
    load_vocabulary,
    tokenizer_hash,
    train_tokenizer,
)
from lpa.errors import UserError
from lpa.train.init_weights import check_same_tokenizer


@pytest.fixture
def directory(prepared, tmp_path):
    return shutil.copytree(prepared / "tokenizer", tmp_path / "tokenizer")


def test_what_prepare_wrote_opens_without_transformers_to_the_same_tokenizer(directory, tmp_path):
    plain, whole = load_fast_tokenizer(directory), load_tokenizer(directory)
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
    assert load_fast_tokenizer(directory) is None


def test_other_files_may_say_more(directory):
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    assert load_fast_tokenizer(directory) is None
    assert load_fast_tokenizer(directory / "gone") is None


def damaged():
    """Contents of `tokenizer.json` that are none: by name."""
    whole = tokenizer_kind("gpt2").to_str()
    fields = json.loads(whole)

    def without(field):
        return json.dumps({name: value for name, value in fields.items() if name != field})

    def changed(**model):
        return json.dumps(fields | {"model": fields["model"] | model})

    return {
        "empty": b"",
        "whitespace": b" \n",
        "null": b"null",
        "a list": b"[]",
        "an empty object": b"{}",
        "text": b'"x"',
        "truncated": whole[:5000].encode(),
        "not UTF-8": whole.encode("utf-16"),
        "zeros": bytes(5000),
        "no model": without("model").encode(),
        "no version it knows": json.dumps(fields | {"version": "9.9"}).encode(),
        "another splitter": json.dumps(fields | {"pre_tokenizer": {"type": "Mine"}}).encode(),
        "no vocabulary": changed(vocab={}).encode(),
        "a token twice": changed(merges=[["q", "no such"]]).encode(),
        "an id that is none": changed(vocab={"a": -1}, merges=[]).encode(),
        "a dropout that is none": changed(dropout=7).encode(),
    }


@pytest.mark.parametrize("name", damaged())
@pytest.mark.parametrize("alone", [False, True], ids=["directory", "file"])
def test_a_damaged_tokenizer_is_one_line(directory, name, alone):
    file = directory / "tokenizer.json"
    file.write_bytes(damaged()[name])
    place = file if alone else directory
    with pytest.raises(UserError) as error:
        load_tokenizer(place)
    message = str(error.value)
    assert message.startswith(f"tokenizer {place}: cannot be loaded (")
    assert "\n" not in message
    with pytest.raises(UserError, match="cannot be loaded"):
        load_vocabulary(directory)
    data = directory.parent / "data"
    shutil.copytree(directory, data / "tokenizer")
    with pytest.raises(UserError, match=r"distill\.teacher .*cannot be loaded"):
        check_same_tokenizer("distill.teacher", directory, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_token": None}, "has no end-of-text token"),
        ({"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": [None, "m.T"]}}, "code"),
        ({"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["m.T", None]}}, "code"),
        ({"auto_map": 3}, "cannot be loaded"),
        ({"eos_token": 3}, "cannot be loaded"),
        ({"model_max_length": "x"}, "settings cannot be used"),
        ({"model_max_length": []}, "settings cannot be used"),
    ],
)
def test_settings_that_cannot_serve_are_one_line(directory, change, message):
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(directory)
    assert "\n" not in str(error.value)
    assert "trust_remote_code" not in str(error.value)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "t5"])
def test_a_directory_without_a_tokenizer_is_refused(tmp_path, kind):
    """transformers would make an empty one up."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UserError, match=r"the directory has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    assert load_vocabulary(tmp_path) is None


def test_code_that_comes_with_a_tokenizer_is_never_run(directory, tmp_path):
    ran = tmp_path / "ran"
    (directory / "m.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass T: pass\n")
    path = directory / "tokenizer_config.json"
    fields = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["m.T", "m.T"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "lpa", "prepare", tmp_path / "a.txt"),
            *("--tokenizer", directory, "--out", tmp_path / "data"),
        ],
        input="yes\n" * 20,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert finished.returncode == 2
    assert "it needs Python code that comes with it, which is never run" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert "[y/N]" not in finished.stdout + finished.stderr
    assert not ran.exists()
    assert not (tmp_path / "data").exists()


def test_a_vocabulary_without_a_tokenizer_json_is_compared_too(directory, tmp_path):
    """A model's directory may hold its tokenizer as vocab.json and merges.txt."""
    data = tmp_path / "data"
    shutil.copytree(directory, data / "tokenizer")
    check_same_tokenizer("distill.teacher", directory, data)
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (teacher / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "<|endoftext|>": 2}))
    (teacher / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="its tokenizer is not that of the data"):
        check_same_tokenizer("distill.teacher", teacher, data)


def test_what_transformers_does_not_run_by_the_library_is_refused(tmp_path):
    """CANINE's tokenizer is Python."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "canine"}))
    (tmp_path / "vocab.txt").write_text("a\n")
    with pytest.raises(UserError, match="which the tokenizers library does not run"):
        load_tokenizer(tmp_path)


WITHOUT_SPACES = {
    "DNA": "".join(random.Random(0).choices("ACGT", k=100_000)),
    "Chinese": "".join(chr(0x4E00 + n * n % 3001) for n in range(50_000)),
    "spaces": "a" + " " * 50_000 + "b" + "\n \t" * 20_000 + "c",
    "digits": "0123456789" * 8_000,
    "marks": "x" + "-=" * 40_000,
    "a word in text": "some words " + "y" * 3_000 + " and more; " + "z" * 512 + " " + "w" * 513,
}


@pytest.mark.parametrize("name", WITHOUT_SPACES)
def test_training_sees_no_word_that_takes_the_square_of_its_length(name):
    text = WITHOUT_SPACES[name]
    tokenizer = train_tokenizer(iter([text]), 300)
    assert len(tokenizer(text)["input_ids"]) < len(text.encode())
    backend = tokenizer.backend_tokenizer
    seen = list(tokenizer_module.split_long_words(text, backend.pre_tokenizer))
    assert "".join(seen) == text
    words = [
        end - start
        for part in seen
        for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(part)
    ]
    assert max(words) <= 512
    # No more than needed: all words but those that are too long are whole.
    whole = backend.pre_tokenizer.pre_tokenize_str(text)
    assert len(words) == sum(-(-(end - start) // 512) for _, (start, end) in whole)


def test_ordinary_text_trains_to_the_same_tokenizer_as_without_a_longest_word(monkeypatch):
    documents = [*read_documents([bundled_corpus("train")])][:20]
    # Longer than a part, so that its length alone is no reason to look at words.
    documents.append("".join(f"<a href='{number}'>" for number in range(100)))
    found = train_tokenizer(iter(documents), 2000).backend_tokenizer.to_str()
    monkeypatch.setattr(tokenizer_module, "_MAX_WORD_LENGTH", 2**40)
    assert train_tokenizer(iter(documents), 2000).backend_tokenizer.to_str() == found
