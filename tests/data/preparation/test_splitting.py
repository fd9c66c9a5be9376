"""How much text is held out, and where documents are cut for it."""

import json
import random

import pytest
from helpers.tokenizer_kinds import tokenizer_kind
from transformers import PreTrainedTokenizerFast

from lpa.data import Manifest, load_split_tokens, load_tokenizer, prepare

WORDS = [f"word{n}" for n in range(500)]


def prose(characters, seed):
    """Words on one line."""
    chance = random.Random(seed)
    return " ".join(chance.choices(WORDS, k=characters // 6))[:characters]


def held_out(tmp_path, tokenizer, documents, **options):
    """Split -> its fraction of all bytes."""
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    splits = prepare([path], tmp_path / "out", tokenizer=tokenizer, **options).splits
    total = sum(split.bytes for split in splits.values())
    assert total == sum(len(text.encode()) for text in documents)
    return {name: split.bytes / total for name, split in splits.items()}


@pytest.mark.parametrize(
    "documents",
    [
        [prose(5900, n) + "\n" + prose(130, n) for n in range(300)],
        [prose(600, n) for n in range(900)],
        [prose(40, n) for n in range(900)],
        ["x" * 700 for _ in range(100)],
        [prose(20_000, 1) + "\n" * 1000],
        ["\n".join(prose(250, line) for line in range(200))],
    ],
    ids=["long lines", "short", "very short", "without a space", "line ends last", "lines"],
)
@pytest.mark.parametrize("test_fraction", [0.0, 0.01])
def test_the_ends_of_documents_are_the_fractions_that_were_asked_for(
    tmp_path, tokenizer, documents, test_fraction
):
    options = {"validation_fraction": 0.01, "test_fraction": test_fraction}
    found = held_out(tmp_path, tokenizer, documents, **options)
    blank = len(documents[-1]) - len(documents[-1].rstrip())  # belongs to the text before it
    accepted = pytest.approx(0.01, rel=0.2, abs=blank / len(documents[-1]))
    assert found["validation"] == accepted
    assert not test_fraction or found["test"] == accepted


def test_documents_are_cut_between_words(tmp_path, tokenizer):
    documents = [prose(5000, n) for n in range(30)]
    held_out(tmp_path, tokenizer, documents, validation_fraction=0.02)
    text = load_tokenizer(tokenizer).decode(load_split_tokens(tmp_path / "out", "validation"))
    pieces = text.split("<|endoftext|>")[:-1]
    assert len(pieces) == 30
    assert all(piece.startswith(" word") for piece in pieces)


def test_documents_too_short_to_be_cut_are_held_out_in_few_pieces(tmp_path, tokenizer):
    held_out(tmp_path, tokenizer, [prose(40, n) for n in range(900)])
    assert Manifest.load(tmp_path / "out").splits["validation"].documents == 11


def test_held_out_text_is_no_training_text_of_any_weight(tmp_path, tokenizer):
    for weight in (0.99, 1.5, 1.99, 2):
        words = [f"w{n}" for n in range(3000)]
        path = tmp_path / "book.txt"
        path.write_text(" ".join(words))
        prepare(
            [f"{path}#weight={weight}"],
            tmp_path / "out",
            tokenizer=tokenizer,
            validation_fraction=0.01,
            test_fraction=0.01,
            overwrite=True,
        )
        train, validation, test = (
            load_tokenizer(tokenizer)
            .decode(load_split_tokens(tmp_path / "out", split))
            .replace("<|endoftext|>", " ")
            .split()
            for split in ("train", "validation", "test")
        )
        assert set(train) & set(words) <= set(words) - set(validation) - set(test)
        assert validation + test == words[-len(validation + test) :]


def test_too_few_documents_after_duplicates_are_cut(tmp_path, tokenizer):
    path = tmp_path / "lines.txt"
    path.write_text("".join(prose(3000, n % 3) + "\n" for n in range(300)))
    options = {"tokenizer": tokenizer, "boundary": "line", "validation_fraction": 0.05}
    splits = prepare([path], tmp_path / "out", deduplicate=True, **options).splits
    assert splits["validation"].documents == 3
    assert sum(split.bytes for split in splits.values()) == 9000


def llama_2_style(directory):
    """A tokenizer that marks beginnings by its normalizer, so that no text is chunked for it."""
    backend = tokenizer_kind("gpt2")
    state = json.loads(backend.to_str())
    state["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    changed = type(backend).from_str(json.dumps(state))
    PreTrainedTokenizerFast(tokenizer_object=changed, eos_token="<|endoftext|>").save_pretrained(
        directory
    )
    return directory


LARGE_TEXTS = {
    "English": "".join(prose(99, line) + "\n" for line in range(30_000)),
    "Chinese with blank lines": ("天地玄黄宇宙洪荒" * 30 + "\n\n") * 6000,
    "Chinese with CRLF": ("天地玄黄宇宙洪荒" * 30 + "\r\n") * 6000,
    "blank beginnings": "\n" * 1_200_000 + prose(1_500_000, 0),
}


@pytest.mark.parametrize("kind", ["gpt2", "llama 2"])
@pytest.mark.parametrize("name", LARGE_TEXTS)
def test_a_large_document_is_cut_where_the_fractions_say(tmp_path, tokenizer, name, kind):
    text = LARGE_TEXTS[name]
    if kind == "llama 2":
        tokenizer = llama_2_style(tmp_path / "tokenizer")
    path = tmp_path / "book.txt"
    path.write_text(text, newline="")
    options = {"validation_fraction": 0.05, "test_fraction": 0.02}
    splits = prepare([path], tmp_path / "out", tokenizer=tokenizer, **options).splits
    total = len(text.encode())
    assert [split.documents for split in splits.values()] == [1, 1, 1]
    assert sum(split.bytes for split in splits.values()) == total
    assert splits["validation"].bytes / total == pytest.approx(0.05, rel=0.01)
    assert splits["test"].bytes / total == pytest.approx(0.02, rel=0.01)
