import json

import pytest
import torch
from helpers.small_models import save_small_bloom, small_llama
from helpers.tokenizer_kinds import word_tokenizer

from lpa.errors import UserError
from lpa.eval.loading import load_with_tokenizer
from lpa.eval.minimal_pairs.evaluate import evaluate_minimal_pairs

PAIRS = [
    {"sentence_good": "He was here.", "sentence_bad": "He were here.", "UID": "agreement"},
    {"sentence_good": "An eye saw it.", "sentence_bad": "A eye saw it.", "UID": "article"},
    {"sentence_good": "It is of the sea.", "sentence_bad": "It is the of sea.", "UID": "order"},
    {"sentence_good": "To me, to us.", "sentence_bad": "To I, to us.", "UID": "order"},
]


@pytest.fixture
def pairs_file(tmp_path):
    def write(pairs):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        return path

    return write


def log_likelihood(model, tokenizer, sentence):
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(sentence)["input_ids"]]])
    with torch.no_grad():
        logs = model(input_ids=ids).logits.double().log_softmax(-1)[0, :-1]
    return logs.gather(1, ids[0, 1:, None]).sum().item()


def test_pairs_of_a_file_are_decided_by_the_likelihood_of_whole_sentences(run, pairs_file):
    model, tokenizer = load_with_tokenizer(run, "cpu")
    expected = {}
    for pair in PAIRS:
        good, bad = (
            log_likelihood(model, tokenizer, pair[key]) for key in ("sentence_good", "sentence_bad")
        )
        expected.setdefault(pair["UID"], []).append(good > bad)
    for batch_size in (1, 3):
        score = evaluate_minimal_pairs(
            run, pairs=pairs_file(PAIRS), batch_size=batch_size, device="cpu"
        )
        assert score.by_phenomenon == {k: sum(v) / len(v) for k, v in expected.items()}
    assert score.pairs == {"agreement": 1, "article": 1, "order": 2}
    assert score.accuracy == pytest.approx(sum(score.by_phenomenon.values()) / 3)
    assert score.left_out == 0


def test_swapping_the_sentences_turns_every_answer(run, pairs_file):
    swapped = [
        {
            "sentence_good": p["sentence_bad"],
            "sentence_bad": p["sentence_good"],
            "UID": p["UID"],
        }
        for p in PAIRS
    ]
    one = evaluate_minimal_pairs(run, pairs=pairs_file(PAIRS), device="cpu")
    other = evaluate_minimal_pairs(run, pairs=pairs_file(swapped), device="cpu")
    assert one.accuracy + other.accuracy == pytest.approx(1)


def test_as_many_pairs_as_asked_for_from_the_whole_text(run, pairs_file):
    many = [dict(PAIRS[0], sentence_good=f"He was here at {number}.") for number in range(10)]
    score = evaluate_minimal_pairs(
        run, pairs=pairs_file(many), pairs_per_phenomenon=3, device="cpu"
    )
    assert score.pairs == {"agreement": 3}


def test_sentences_beyond_the_context_are_left_out_and_counted(run, pairs_file):
    long = dict(PAIRS[0], sentence_good="He was here " * 500)
    score = evaluate_minimal_pairs(run, pairs=pairs_file([*PAIRS, long]), device="cpu")
    assert score.left_out == 1
    assert sum(score.pairs.values()) == len(PAIRS)
    with pytest.raises(UserError, match="longer than the"):
        evaluate_minimal_pairs(run, pairs=pairs_file([long]), device="cpu")


def test_the_last_token_of_a_sentence_needs_no_position(run, pairs_file):
    _, tokenizer = load_with_tokenizer(run, "cpu")
    fits, exceeds = ("~" * length for length in (32, 33))
    assert [len(tokenizer(text)["input_ids"]) for text in (fits, exceeds)] == [32, 33]
    pairs = [dict(PAIRS[0], sentence_good=text) for text in (fits, exceeds)]
    score = evaluate_minimal_pairs(run, pairs=pairs_file(pairs), device="cpu")
    assert (score.pairs, score.left_out) == ({"agreement": 1}, 1)


def test_a_model_that_states_no_positions_reads_every_sentence(run, pairs_file, tmp_path):
    bloom = save_small_bloom(run, tmp_path / "bloom")
    long = dict(PAIRS[0], sentence_good="He was here " * 20)
    score = evaluate_minimal_pairs(bloom, pairs=pairs_file([*PAIRS, long]), device="cpu")
    assert (sum(score.pairs.values()), score.left_out) == (len(PAIRS) + 1, 0)


def test_the_tokenizer_of_a_live_model_is_checked(pairs_file):
    pairs = pairs_file([dict(PAIRS[0], sentence_good="the cat", sentence_bad="cat mat")])
    tokenizer = word_tokenizer("the cat sat on a mat")  # mat is 7
    score = evaluate_minimal_pairs(small_llama(8), pairs=pairs, tokenizer=tokenizer)
    assert score.pairs == {"agreement": 1}
    with pytest.raises(UserError, match=r"pairs: a sentence has tokens up to id 7; .* at most 6"):
        evaluate_minimal_pairs(small_llama(7), pairs=pairs, tokenizer=tokenizer)
    unending = word_tokenizer("the cat sat on a mat", eos_token=None)
    with pytest.raises(UserError, match="tokenizer: has no end-of-text token"):
        evaluate_minimal_pairs(small_llama(8), pairs=pairs, tokenizer=unending)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no minimal pair"),
        ("{", "line 1: is not JSON"),
        ('{"sentence_good": "It is so."}', "line 1: expected sentence_good and sentence_bad"),
        ('{"sentence_good": "It is so.", "sentence_bad": 3}', "line 1: expected"),
        ("[1]", "line 1: "),
    ],
)
def test_a_bad_file_of_pairs_is_one_line(run, tmp_path, text, words):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        evaluate_minimal_pairs(run, pairs=path, device="cpu")


def test_bad_arguments(run, prepared, pairs_file):
    pairs = pairs_file(PAIRS)
    for arguments, words in (
        ({}, "expected one of them"),
        ({"data": prepared, "pairs": pairs}, "expected one of them"),
        ({"pairs": pairs, "split": "test"}, "has no splits"),
        ({"pairs": pairs.with_name("none")}, "cannot be read"),
        ({"pairs": pairs, "pairs_per_phenomenon": 0}, "at least 1"),
        ({"pairs": pairs, "batch_size": 0}, "at least 1"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate_minimal_pairs(run, **arguments)
