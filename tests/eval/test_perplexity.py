import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import save_small_bloom, small_llama
from helpers.small_runs import small_config
from helpers.tokenizer_kinds import word_tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer

from lpa.convert.merge import merge_directory
from lpa.data import Manifest, load_split_tokens, prepare, read_documents
from lpa.data.sources.source import bundled_corpus
from lpa.errors import LPAWarning, UserError
from lpa.eval.loading import load_with_tokenizer
from lpa.eval.perplexity import evaluate_perplexity
from lpa.train.run import train


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """A text that no part of which was trained on."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(next(read_documents([bundled_corpus("validation")]))[:5000])
    return path


def by_hand(model, tokens, seq_len=32) -> float:
    total = 0.0
    for start in range(0, len(tokens) - 1, seq_len):
        window = torch.tensor(tokens[start : start + seq_len + 1])
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0]
        total += F.cross_entropy(logits.double(), window[1:], reduction="sum").item()
    return total


def test_prepared_data_token_by_token(run, prepared):
    result = evaluate_perplexity(run, prepared, device="cpu")
    model, _ = load_with_tokenizer(run, "cpu")
    tokens = load_split_tokens(prepared, "test")  # the default where there is one
    total = by_hand(model, tokens)
    split = Manifest.load(prepared).split("test")
    assert result.tokens == len(tokens) - 1
    assert result.loss == pytest.approx(total / result.tokens, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.word_perplexity == pytest.approx(math.exp(total / split.words), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / split.bytes, rel=1e-6)


def test_a_text_file_is_tokenized_with_the_models_tokenizer(run, held_out):
    result = evaluate_perplexity(run, held_out, device="cpu")
    model, tokenizer = load_with_tokenizer(run, "cpu")
    text = held_out.read_text()
    tokens = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    total = by_hand(model, tokens)
    assert result.tokens == len(tokens) - 1
    assert result.loss == pytest.approx(total / result.tokens, rel=1e-6)
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / len(text.encode()), rel=1e-6)


def test_documents_are_kept_apart_as_in_training(tmp_path):
    """For the model of the run, and for the stock Llama that it merges to."""
    lines = "".join(f"{n} times {n * n} is {n**3} and no more\n" for n in range(300))
    (tmp_path / "lines.txt").write_text(lines)
    source = f"{tmp_path / 'lines.txt'}#boundary=line"
    data = tmp_path / "data"
    prepare([source], data, vocab_size=300, validation_fraction=0.2)
    for keeps_apart in (True, False):
        run = tmp_path / f"run-{keeps_apart}"
        fields = {"intra_document_mask": keeps_apart, "optim": {"lr": 0.02}, "loggers": []}
        trained = train(small_config(data, steps=20, **fields), run).validation
        merge_directory(run, run / "merged")
        for model in (run, run / "merged"):
            scored = evaluate_perplexity(model, data, split="validation", seq_len=32, device="cpu")
            assert scored.tokens == trained.tokens
            assert scored.loss == pytest.approx(trained.loss, rel=1e-5)
    model, tokenizer = load_with_tokenizer(tmp_path / "run-True", "cpu")
    model.config.intra_document_mask = False
    without = evaluate_perplexity(
        model, data, split="validation", seq_len=32, tokenizer=tokenizer, device="cpu"
    )
    apart = evaluate_perplexity(tmp_path / "run-True", data, split="validation", device="cpu")
    assert without.loss != pytest.approx(apart.loss, rel=1e-3)


def test_batch_size_changes_nothing(run, prepared):
    results = [evaluate_perplexity(run, prepared, batch_size=n, device="cpu") for n in (1, 16)]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)


def test_the_trainer_reports_the_same_validation_perplexity(run, prepared):
    reported = json.loads((run / "result.json").read_text())["validation"]
    result = evaluate_perplexity(run, prepared, split="validation", device="cpu")
    assert reported["tokens"] == result.tokens
    assert reported["loss"] == pytest.approx(result.loss, rel=1e-6)


def test_a_model_of_another_kind(tmp_path, run, held_out):
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    model = small_llama(len(tokenizer), num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    result = evaluate_perplexity(tmp_path, held_out, device="cpu")
    tokens = [*tokenizer(held_out.read_text())["input_ids"], tokenizer.eos_token_id]
    assert result.loss == pytest.approx(by_hand(model, tokens) / result.tokens, rel=1e-5)


def test_a_model_that_states_no_positions_takes_the_context_that_is_asked_for(
    tmp_path, run, held_out
):
    bloom = save_small_bloom(run, tmp_path / "bloom")
    with pytest.raises(UserError, match="--seq-len: got none"):
        evaluate_perplexity(bloom, held_out, device="cpu")
    result = evaluate_perplexity(bloom, held_out, seq_len=50, device="cpu")
    model, tokenizer = load_with_tokenizer(bloom, "cpu")
    tokens = [*tokenizer(held_out.read_text())["input_ids"], tokenizer.eos_token_id]
    assert result.loss == pytest.approx(by_hand(model, tokens, 50) / result.tokens, rel=1e-5)


def test_data_of_another_tokenizer_is_refused(tmp_path, run, held_out):
    from lpa.data import prepare

    prepare([held_out], tmp_path / "data", vocab_size=300)
    with pytest.raises(UserError, match="was made with another tokenizer than the model's"):
        evaluate_perplexity(run, tmp_path / "data", device="cpu")


@pytest.mark.parametrize("seq_len", [0, 33])
def test_a_context_beyond_the_models_is_refused(run, prepared, seq_len):
    with pytest.raises(UserError, match=f"--seq-len: got {seq_len}; expected from 1 to 32"):
        evaluate_perplexity(run, prepared, seq_len=seq_len, device="cpu")


def test_a_batch_of_nothing_is_refused(run, prepared):
    with pytest.raises(UserError, match="--batch-size: got 0; expected at least 1"):
        evaluate_perplexity(run, prepared, batch_size=0, device="cpu")


@pytest.mark.parametrize("is_prepared", [False, True])
def test_unknown_tokens_are_warned_of(tmp_path, is_prepared):
    model, tokenizer = small_llama(8), word_tokenizer("the cat sat", "on a mat")
    (tmp_path / "text.txt").write_text("the cat saw a dog")
    source = f"{tmp_path / 'text.txt'}"
    if is_prepared:
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        prepare(
            [source], tmp_path / "data", tokenizer=tmp_path / "tokenizer", validation_fraction=0
        )
        source = str(tmp_path / "data")
    split = "train" if is_prepared else None
    with pytest.warns(LPAWarning, match=r"2 of 6 tokens \(33\.33%\) are unknown ones"):
        evaluate_perplexity(model, source, split=split, tokenizer=tokenizer)
    (tmp_path / "text.txt").write_text("the cat sat on a mat")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LPAWarning)
        evaluate_perplexity(model, tmp_path / "text.txt", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: word_tokenizer("the cat", eos_token=None), "has no end-of-text token"),
        (ByT5Tokenizer, "is a ByT5Tokenizer, which the tokenizers library does not run"),
    ],
)
def test_the_tokenizer_of_a_live_model_is_checked(make, message, held_out):
    with pytest.raises(UserError, match=rf"^tokenizer: {message}"):
        evaluate_perplexity(small_llama(8), held_out, tokenizer=make())


def test_tokens_of_a_text_that_a_live_model_has_not(tmp_path):
    tokenizer = word_tokenizer("the cat sat", "on a mat")
    (tmp_path / "text.txt").write_text("the cat sat on a cat")
    path = tmp_path / "text.txt"
    assert evaluate_perplexity(small_llama(7), path, tokenizer=tokenizer).tokens == 6
    with pytest.raises(UserError, match=r"text\.txt: the text has tokens up to id 6; .* at most 5"):
        evaluate_perplexity(small_llama(6), path, tokenizer=tokenizer)
