"""The tokens of a prepared directory are those that transformers gives for the same text."""

import json

import pytest
from helpers.tokenizer_kinds import tokenizer_kind
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lpa.cli.data.prepare import main
from lpa.data import (
    Manifest,
    bundled_corpus,
    load_split_tokens,
    load_tokenizer,
    prepare,
    read_documents,
)
from lpa.data.dataset import verify_shards
from lpa.data.tokenizer import vocabulary_size

END = "<|endoftext|>"
KINDS = ["gpt2", "newer", "prefix space", "metaspace", "lower case", "added tokens", "many special"]


def tokenizer_of(kind):
    if kind not in ("added tokens", "many special"):
        return tokenizer_kind(kind)
    backend = Tokenizer.from_str(tokenizer_kind("newer").to_str())
    if kind == "added tokens":
        backend.add_tokens([AddedToken("<think>"), AddedToken("    "), AddedToken("\n\n")])
    else:
        backend.add_special_tokens([f"<|reserved_{number}|>" for number in range(250)])
    return backend


@pytest.fixture(scope="module")
def documents():
    """Real text, the first of it with what spells special tokens in the middle."""
    documents = list(read_documents([bundled_corpus("test")]))[:3]
    half = len(documents[0]) // 2
    spelled = f" a{END}b <think>\n\n    <|reserved_7|>{END}\n"
    return [documents[0][:half] + spelled + documents[0][half:], *documents[1:]]


@pytest.fixture(scope="module")
def source(documents, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parse", [False, True])
def test_tokens_are_those_of_transformers(kind, parse, documents, source, tmp_path):
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(kind), eos_token=END, pad_token=END
    ).save_pretrained(tmp_path / "tokenizer")
    manifest = prepare(
        [source],
        tmp_path / "data",
        tokenizer=tmp_path / "tokenizer",
        validation_fraction=0,
        parse_special_tokens=parse,
    )
    reference = AutoTokenizer.from_pretrained(tmp_path / "data" / "tokenizer")
    expected = []
    for text in documents:
        ids = reference(text, add_special_tokens=False, split_special_tokens=not parse)["input_ids"]
        expected += [*ids, reference.eos_token_id]
    assert load_split_tokens(tmp_path / "data", "train").tolist() == expected
    assert expected.count(reference.eos_token_id) == len(documents) + 2 * parse
    assert manifest.parse_special_tokens is parse
    assert manifest.splits["train"].documents == len(documents)
    assert manifest.splits["train"].special_tokens_in_text == 2 + (kind == "many special")
    assert Manifest.load(tmp_path / "data") == manifest


@pytest.mark.parametrize(
    ("options", "summary"),
    [
        ([], "2 times the text spells a special token; each stayed text (--parse-special-tokens"),
        (
            ["--parse-special-tokens"],
            "2 times the text spells a special token; each became that token",
        ),
    ],
)
def test_the_summary_says_how_often_text_spells_a_special_token(
    options, summary, tmp_path, capsys, source
):
    common = [str(source), "--vocab-size", "300", "--validation-fraction", "0"]
    main([*common, "--out", str(tmp_path / "data"), *options])
    assert summary in capsys.readouterr().out
    main([*common, "--out", str(tmp_path / "data"), *options, "--overwrite", "--json"])
    assert json.loads(capsys.readouterr().out)["parse_special_tokens"] is bool(options)


def test_parsing_special_tokens_encodes_jobs_of_a_stopped_process_again(source, tmp_path):
    def stop(what, done, total):
        if what == "writing shards":
            raise KeyboardInterrupt

    options = {"vocab_size": 300, "validation_fraction": 0.0}
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "data", **options, on_progress=stop)
    assert list(tmp_path.glob(".data.partial*/jobs/*.npy"))
    prepare([source], tmp_path / "data", **options, parse_special_tokens=True)
    prepare([source], tmp_path / "new", **options, parse_special_tokens=True)
    tokens = [load_split_tokens(tmp_path / name, "train").tolist() for name in ("data", "new")]
    assert tokens[0] == tokens[1]


# Tokens and their ids; the last of them beyond what a count of tokens would allow.
GAPS = {
    "a gap": {"<unk>": 0, "a": 1, END: 2, "b": 300},
    "end of text last": {"<unk>": 0, "a": 1, "b": 2, END: 999},
    "just two bytes": {"<unk>": 0, "a": 1, END: 2, "b": 2**16 - 1},
    "more than two bytes": {"<unk>": 0, "a": 1, END: 2, "b": 2**16},
    "a large end of text": {"<unk>": 0, "a": 1, "b": 2, END: 2**17},
}


@pytest.mark.parametrize("name", GAPS)
def test_the_highest_id_decides_where_ids_leave_gaps(name, tmp_path):
    vocabulary = GAPS[name]
    highest = max(vocabulary.values())
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END).save_pretrained(
        tmp_path / "tokenizer"
    )
    (tmp_path / "text.txt").write_text("a b a c b b" * 50)
    manifest = prepare(
        [tmp_path / "text.txt"],
        tmp_path / "data",
        tokenizer=tmp_path / "tokenizer",
        validation_fraction=0.2,
    )
    assert manifest.vocab_size == highest + 1
    assert manifest.dtype == ("uint16" if highest < 2**16 else "uint32")
    assert vocabulary_size(load_tokenizer(tmp_path / "data" / "tokenizer")) == highest + 1
    verify_shards(tmp_path / "data", "train")
    tokens = load_split_tokens(tmp_path / "data", "train")
    assert {vocabulary["a"], vocabulary["b"]} <= set(tokens.tolist())
    assert tokens[-1] == vocabulary[END] or manifest.splits["train"].documents == 1
