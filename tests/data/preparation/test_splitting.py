"""How much text is held out, and where documents are cut for it."""

import json
import random

import pytest
from helpers.tokenizer_kinds import tokenizer_kind
from transformers import PreTrainedTokenizerFast

from lpa.data import Manifest, load_split_tokens, load_tokenizer, prepare
from lpa.data.preparation.splitting import num_copies

WORDS = [f"word{n}" for n in range(500)]


def words_by_split(data, tokenizer):
    """The words of the text of each split: train, validation, test."""
    decode = load_tokenizer(tokenizer).decode
    return [
        decode(load_split_tokens(data, split)).replace("<|endoftext|>", " ").split()
        for split in ("train", "validation", "test")
    ]


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
        [f"{n:02}" * 350 for n in range(100)],
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
        train, validation, test = words_by_split(tmp_path / "out", tokenizer)
        assert set(train) & set(words) <= set(words) - set(validation) - set(test)
        assert validation + test == words[-len(validation + test) :]


def test_too_few_documents_after_duplicates_are_cut(tmp_path, tokenizer):
    path = tmp_path / "lines.txt"
    path.write_text("".join(prose(3000, n % 3) + "\n" for n in range(300)))
    options = {"tokenizer": tokenizer, "boundary": "line", "validation_fraction": 0.05}
    splits = prepare([path], tmp_path / "out", deduplicate=True, **options).splits
    assert splits["validation"].documents == 3
    assert sum(split.bytes for split in splits.values()) == 9000


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("weight", [0.25, 0.5, 1.5])
@pytest.mark.parametrize("others", [0, 400])
def test_a_broken_weight_takes_its_share_of_a_source_of_few_documents(
    tmp_path, tokenizer, seed, weight, others
):
    """Also where whole documents of other sources are held out."""
    book, notes = tmp_path / "book.txt", tmp_path / "notes.txt"
    words = [f"w{seed}x{n:04}" for n in range(2000)]
    book.write_text(" ".join(words))
    notes.write_text("".join(prose(40, n) + "\n" for n in range(others)))
    sources = [f"{notes}#boundary=line"] * (others > 0) + [f"{book}#weight={weight}"]
    options = {"validation_fraction": 0.1} if others else {"validation": [tmp_path / "held.txt"]}
    (tmp_path / "held.txt").write_text("held out")
    prepare(sources, tmp_path / "out", tokenizer=tokenizer, **options)
    text, held_out = (
        load_tokenizer(tokenizer).decode(load_split_tokens(tmp_path / "out", split))
        for split in ("train", "validation")
    )
    if words[0] in held_out:  # as a whole, and once
        assert text.count(f"w{seed}x") == 0
        assert held_out.count(f"w{seed}x") == 2000
    else:
        assert text.count(f"w{seed}x") / 2000 == pytest.approx(weight, rel=0.02)


@pytest.mark.parametrize("options", [{"validation_fraction": 0}, {"validation_fraction": 0.005}])
def test_a_small_weight_takes_its_share_of_many_short_documents(tmp_path, tokenizer, options):
    path = tmp_path / "lines.txt"
    path.write_text("".join(prose(40, n) + "\n" for n in range(900)))
    source = f"{path}#weight=0.008,boundary=line"
    splits = prepare([source], tmp_path / "out", tokenizer=tokenizer, **options).splits
    assert splits["train"].bytes == pytest.approx(40 * 900 * 0.008, rel=0.1)
    assert splits["train"].documents <= 10


def test_a_broken_weight_takes_whole_documents_where_there_are_many(tmp_path, tokenizer):
    lines = [prose(200, n) for n in range(60)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    (tmp_path / "held.txt").write_text("held out")
    options = {"tokenizer": tokenizer, "boundary": "line", "validation": [tmp_path / "held.txt"]}
    prepare([f"{tmp_path / 'lines.txt'}#weight=0.5"], tmp_path / "out", **options)
    text = load_tokenizer(tokenizer).decode(load_split_tokens(tmp_path / "out", "train"))
    taken = text.split("<|endoftext|>")[:-1]
    assert taken == [line for line in lines if num_copies(line, 0.5)]
    assert 15 <= len(taken) <= 45


def test_equal_documents_that_are_left_out_do_not_make_many(tmp_path, tokenizer):
    words = [f"w{n:04}" for n in range(2000)]
    (tmp_path / "books.jsonl").write_text(40 * (json.dumps({"text": " ".join(words)}) + "\n"))
    (tmp_path / "held.txt").write_text("held out")
    options = {"tokenizer": tokenizer, "validation": [tmp_path / "held.txt"], "deduplicate": True}
    prepare([f"{tmp_path / 'books.jsonl'}#weight=0.5"], tmp_path / "out", **options)
    text = load_tokenizer(tokenizer).decode(load_split_tokens(tmp_path / "out", "train"))
    assert text.count("w") == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("order", ["abb", "bab", "bba"])
def test_nothing_is_held_out_of_documents_that_occur_twice(tmp_path, tokenizer, order):
    texts = {name: " ".join(f"{name}{n:04}" for n in range(2000)) for name in "ab"}
    rows = [json.dumps({"text": texts[name]}) for name in order]
    (tmp_path / "books.jsonl").write_text("\n".join(rows))
    prepare(
        [f"{tmp_path / 'books.jsonl'}#weight=1.5"],
        tmp_path / "out",
        tokenizer=tokenizer,
        validation_fraction=0.1,
        test_fraction=0.1,
    )
    train, validation, test = words_by_split(tmp_path / "out", tokenizer)
    assert validation + test == texts["a"].split()[-len(validation + test) :]
    assert len(validation) == pytest.approx(200, rel=0.05)
    assert not set(validation + test) & set(train)
    assert sum(word.startswith("b") for word in train) == pytest.approx(6000, rel=0.02)


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
