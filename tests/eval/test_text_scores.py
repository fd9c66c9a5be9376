import math

import numpy as np
import pytest
import torch
from helpers.small_models import small_llama
from helpers.tokenizer_kinds import save_with_bos
from transformers import AutoTokenizer, GPT2Config

from lpa.data import bundled_corpus, load_split_tokens, read_documents
from lpa.errors import UserError
from lpa.eval.loading import load_with_tokenizer
from lpa.eval.perplexity import evaluate_perplexity, summarize
from lpa.eval.text_scores import iter_windows, score
from lpa.eval.tokenized_text import TokenizedText
from lpa.eval.windows import WindowConfig
from lpa.model.loading import positions_of


def text_of(lengths, bos=None, seed=0):
    """Documents of random tokens 2 … 96, each after `bos` if one is given, and ended by token 0."""
    generator = np.random.default_rng(seed)
    begin = [] if bos is None else [bos]
    parts = [np.array([*begin, *generator.integers(2, 97, length), 0]) for length in lengths]
    sizes = np.array(lengths) * 4
    return TokenizedText(
        tokens=np.concatenate(parts),
        ends=np.cumsum([len(part) for part in parts]),
        words=sum(lengths),
        bytes=int(sizes.sum()),
        document_bytes=sizes,
        bos_token_id=bos,
        eos_token_id=0,
    )


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize(
    ("mode", "seq_len", "stride"),
    [
        ("blocks", 7, 7),
        ("sliding", 7, 3),
        ("sliding", 7, 7),
        ("documents", 7, 2),
        ("documents", 64, 32),
    ],
)
def test_every_token_is_scored_once(mode, seq_len, stride, bos):
    text = text_of([5, 0, 1, 30, 13], bos)
    count = np.zeros(len(text.tokens), dtype=int)
    for window in iter_windows(text, mode=mode, seq_len=seq_len, stride=stride):
        assert len(window.ids) <= seq_len + 1
        places = slice(window.stop - window.num_scored, window.stop)
        assert window.ids[-window.num_scored :].tolist() == text.tokens[places].tolist()
        count[places] += 1
    expected = np.ones_like(count)  # but what nothing comes before
    if mode != "documents":
        expected[0] = 0
    elif bos is not None:
        expected[[0, *text.ends[:-1]]] = 0
    assert count.tolist() == expected.tolist()


def test_a_document_alone_begins_once():
    ended = list(iter_windows(text_of([3, 4]), mode="documents", seq_len=8, stride=4))
    assert [window.ids[0] for window in ended] == [0, 0]  # as after another document
    started = list(iter_windows(text_of([3, 4], bos=1), mode="documents", seq_len=8, stride=4))
    assert [window.ids.tolist().count(1) for window in started] == [1, 1]
    one = list(iter_windows(text_of([3, 4], bos=1), mode="blocks", seq_len=99, stride=99))
    assert len(one) == 1
    assert one[0].ids[0] == 1


def test_sliding_windows_give_the_context_that_they_promise():
    found = list(iter_windows(text_of([100]), mode="sliding", seq_len=10, stride=4))
    assert all(len(window.ids) - window.num_scored >= 10 - 4 for window in found[1:])


@pytest.fixture(scope="module")
def stock():
    return small_llama(initializer_range=0.3)


def by_hand(model, text, mode, seq_len, stride):
    """Full logits in float64, one window at a time, from the definition."""
    model = model.double()
    total = 0.0
    spans = [(0, len(text.tokens))]
    if mode == "documents":
        spans = [(a, b) for a, b in zip([0, *text.ends[:-1]], text.ends, strict=True)]
    for begin, end in spans:
        ids = [*([0] if mode == "documents" else []), *text.tokens[begin:end]]
        for target in range(1, len(ids)):
            # The first window that reaches the target's predecessor.
            k = max(0, math.ceil((target - seq_len) / stride))
            window = torch.tensor(ids[k * stride : target])
            with torch.no_grad():
                logits = model(window[None]).logits[0, -1]
            total -= torch.log_softmax(logits, -1)[ids[target]].item()
    model.float()
    return total


@pytest.mark.parametrize(
    ("mode", "stride"), [("blocks", 16), ("sliding", 5), ("documents", 8), ("documents", 16)]
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_against_full_logits_in_float64(stock, mode, stride, batch_size):
    text = text_of([40, 0, 3, 25, 9])
    scores = score(stock, text, mode=mode, seq_len=16, stride=stride, batch_size=batch_size)
    expected = by_hand(stock, text, mode, 16, stride)
    # float32 logits: the stated tolerance of a loss, whatever batch and padding.
    assert scores.loss.sum() == pytest.approx(expected, rel=1e-5)
    assert scores.tokens.sum() == len(text.tokens) - (mode != "documents")


def test_the_recipe_of_the_transformers_documentation(stock):
    """https://huggingface.co/docs/transformers/perplexity, its loop on the same ids."""
    text = text_of([300])
    ids, seq_len, stride = torch.from_numpy(text.tokens)[None], 32, 8
    nll_sum, n_tokens, prev_end = 0.0, 0, 0
    for begin in range(0, ids.size(1), stride):
        end = min(begin + seq_len, ids.size(1))
        input_ids = ids[:, begin:end]
        target_ids = input_ids.clone()
        target_ids[:, : -(end - prev_end)] = -100
        with torch.no_grad():
            loss = stock(input_ids, labels=target_ids).loss
        valid = (target_ids[:, 1:] != -100).sum().item()
        nll_sum, n_tokens, prev_end = nll_sum + loss.item() * valid, n_tokens + valid, end
        if end == ids.size(1):
            break
    scores = score(stock, text, mode="sliding", seq_len=32, stride=stride, batch_size=4)
    assert scores.tokens.sum() == n_tokens
    # Its first window has one input less, since it counts targets into the context; so all windows
    # begin one token later here and some predictions see one token more or less.
    assert scores.loss.sum() / n_tokens == pytest.approx(nll_sum / n_tokens, rel=5e-3)
    exact = score(stock, text, mode="sliding", seq_len=31, stride=stride, batch_size=4)
    assert exact.loss.sum() == pytest.approx(nll_sum, rel=1e-5)


def test_the_standard_error_is_that_of_a_mean_over_documents(stock):
    text = text_of([20] * 200)
    options = {"mode": "documents", "seq_len": 32, "stride": 16, "batch_size": 16}
    scores = score(stock, text, **options)
    result = summarize(text, scores, options)
    assert result.resampling_unit == "documents"
    means = scores.loss / scores.tokens  # equal lengths: perplexity = exp of their mean
    by_theory = result.perplexity * means.std(ddof=1) / math.sqrt(len(means))
    # 1000 draws know a standard deviation to 1 / sqrt(2000) = 2.2%, and 200 documents to 5%.
    assert result.standard_error == pytest.approx(by_theory, rel=0.1)
    low, high = result.interval
    assert low < result.perplexity < high
    assert high - low == pytest.approx(2 * 1.96 * by_theory, rel=0.15)


def test_a_text_of_few_documents_is_resampled_in_blocks(run, prepared):
    result = evaluate_perplexity(run, prepared, device="cpu")
    assert result.documents < 30
    assert result.resampling_unit == "blocks of 32 tokens"
    assert 0 < result.standard_error < result.perplexity


def test_documents_are_separated_in_prepared_data(run, prepared):
    _, tokenizer = load_with_tokenizer(run, "cpu")
    tokens = load_split_tokens(prepared, "train")
    result = evaluate_perplexity(run, prepared, split="train", mode="documents", device="cpu")
    assert result.documents == (tokens == tokenizer.eos_token_id).sum()
    assert result.tokens == len(tokens)
    assert result.resampling_unit == (
        "documents" if result.documents >= 30 else "blocks of 32 tokens"
    )


def test_a_tokenizer_with_a_beginning_token_sets_it_once(tmp_path, run):
    bos = save_with_bos(run / "final", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = small_llama(len(tokenizer), num_hidden_layers=1, max_position_embeddings=4096)
    model.save_pretrained(tmp_path / "model")
    words = next(read_documents([bundled_corpus("validation")]))[:1500]
    (tmp_path / "text.txt").write_text(words)
    ids = [*tokenizer(words)["input_ids"], tokenizer.eos_token_id]
    assert ids[0] == bos
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
    for mode in ("blocks", "documents"):
        result = evaluate_perplexity(
            tmp_path / "model",
            tmp_path / "text.txt",
            mode=mode,
            device="cpu",
        )
        assert result.tokens == len(ids) - 1
        assert result.loss * result.tokens == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "windows"}, "--mode: got 'windows'; expected one of blocks, sliding, documents"),
        ({"stride": 0}, "--stride: got 0; expected from 1 to the context, 64"),
        ({"stride": 65}, "--stride: got 65; expected from 1 to the context, 64"),
        ({"mode": "blocks", "stride": 8}, "--stride 8: blocks do not overlap"),
    ],
)
def test_a_window_that_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        WindowConfig(**fields).resolve(64)


def test_the_context_of_gpt2_has_another_name():
    positions = positions_of(GPT2Config(n_positions=48))
    assert WindowConfig().resolve(positions)["seq_len"] == 48


def test_a_model_that_states_no_positions_takes_any_context_but_needs_one():
    with pytest.raises(UserError, match="--seq-len: got none; expected the tokens per window"):
        WindowConfig().resolve(None)
    with pytest.raises(UserError, match="--seq-len: got 0; expected at least 1"):
        WindowConfig(seq_len=0).resolve(None)
    assert WindowConfig(seq_len=10**5).resolve(None)["seq_len"] == 10**5
