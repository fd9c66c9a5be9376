"""Two models on the same text: the paired difference, its interval, and what it allows to say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from lpa.callbacks import StepCallback
from lpa.data.tokenizer import tokenizer_hash
from lpa.errors import UserError
from lpa.eval.bootstrap import bootstrap
from lpa.eval.perplexity import Evaluation, check_scorable, open_for_scoring, summarize
from lpa.eval.text_scores import score
from lpa.eval.tokenized_text import TokenizedText, load_text
from lpa.eval.windows import WindowConfig
from lpa.model.loading import positions_of

_MIN_PARTS = 10


@dataclass
class Comparison:
    """Model A against model B.

    Attributes:
        a, b: each alone.
        measure: `perplexity`, or `bits_per_byte` where the tokenizers differ, if only in the tokens before
            and after a document.
        change: A / B - 1 of that measure; negative where A is better.
        interval: 95% bootstrap interval of `change`; each draw takes the same parts of the text for both.
        parts: how many parts were drawn from.
        verdict: `better`, `worse` or `not distinguishable`, of A.
    """

    a: Evaluation
    b: Evaluation
    measure: str
    change: float
    interval: tuple[float, float]
    parts: int
    verdict: str

    def to_sentence(self, a: str, b: str) -> str:
        """The verdict as a sentence, with the models' names."""
        measure = self.measure.replace("_", " ")
        low, high = (f"{bound:+.1%}" for bound in self.interval)
        found = f"{measure} {self.change:+.1%}, 95% interval {low} to {high}"
        if self.verdict == "not distinguishable":
            return f"{a} and {b} are not distinguishable ({found})"
        return f"{a} is {self.verdict} than {b} ({found})"


def compare(
    a: PreTrainedModel | str | Path,
    b: PreTrainedModel | str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    mode: str | None = None,
    seq_len: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "float32",
    tokenizer_a: Any = None,
    tokenizer_b: Any = None,
    on_progress: StepCallback = lambda done, total: None,
) -> Comparison:
    """Scores a text with two models and compares them part by part.

    A passage that is hard for one model is mostly hard for the other, so the paired difference is far more
    precise than either perplexity.

    Args:
        a: a run directory, a Hugging Face directory, or a live model.
        b: another, or the same.
        data: as in `evaluate_perplexity`.
        split: as there.
        mode: as there.
        stride: as there.
        batch_size: as there.
        device: as there.
        dtype: as there.
        seq_len: tokens per window; by default the smaller context of the two models, and required where
            neither configuration states one.
        tokenizer_a: that of `a`, where it is a live model.
        tokenizer_b: that of `b`, where it is a live model.
        on_progress: called with tokens scored and tokens in all.

    Returns:
        Both evaluations, the change from B to A with its 95% interval, and a verdict.

    Raises:
        UserError: as `evaluate_perplexity`; the text has too few parts to draw from; or the tokenizers
            differ and one cannot express the text.

    Example:
        comparison = lpa.compare("runs/lpa", "runs/dense", "data")
        print(comparison.to_sentence("LPA", "dense"))
    """
    with (
        open_for_scoring(a, tokenizer_a, device, dtype, name="tokenizer_a") as opened_a,
        open_for_scoring(b, tokenizer_b, device, dtype, name="tokenizer_b") as opened_b,
    ):
        windows = WindowConfig(mode, seq_len, stride, batch_size)
        return _compare(opened_a, opened_b, data, split, windows, on_progress)


def _compare(
    opened_a: tuple[Any, Any],
    opened_b: tuple[Any, Any],
    data: str | Path,
    split: str | None,
    window_config: WindowConfig,
    on_progress: StepCallback,
) -> Comparison:
    """`compare`, of models with their tokenizers."""
    models, tokenizers = zip(opened_a, opened_b, strict=True)
    positions = [positions_of(model.config) for model in models]
    if window_config.seq_len is None:
        stated = [count for count in positions if count is not None]
        window_config = replace(window_config, seq_len=min(stated, default=None))
    window_args = [window_config.resolve(count) for count in positions]
    texts, same = _load_texts(data, split, tokenizers)
    evaluations, scores = [], []
    for model, text in zip(models, texts, strict=True):
        if text.unknown_tokens and not same:
            raise UserError(
                f"--data {data}: the models have different tokenizers, and {text.unknown_share} of one are "
                "unknown ones, which stand for any text, so bits per byte do not tell the models apart; "
                "expected tokenizers that can express the whole text"
            )
        check_scorable(data, text, model.config)
    for model_index, (model, text, args) in enumerate(zip(models, texts, window_args, strict=True)):

        def half(done: int, total: int, model_index: int = model_index) -> None:
            on_progress(model_index * total + done, 2 * total)

        scores.append(score(model, text, on_progress=half, **args))
        evaluations.append(summarize(text, scores[-1], args))

    if not same and scores[0].bytes is None:
        raise UserError(
            f"--data {data}: the models have different tokenizers, so whole documents are compared, and "
            "here are too few; give the text itself in more documents, as in FILE#boundary=line"
        )
    parts = len(scores[0].loss)
    if parts < _MIN_PARTS:
        raise UserError(
            f"--data {data}: got {parts} {scores[0].resampling_unit}; expected at least {_MIN_PARTS} to tell "
            "two models apart: more text, more documents or a smaller --seq-len"
        )
    sizes: list[Any] = [each.tokens if same else each.bytes for each in scores]
    totals = np.stack([scores[0].loss, sizes[0], scores[1].loss, sizes[1]]).astype(np.float64)
    measure = "perplexity" if same else "bits_per_byte"
    change = float(_change(*totals.sum(axis=1), measure=measure))
    _, interval_of_change = bootstrap(partial(_change, measure=measure), *totals)
    return Comparison(
        a=evaluations[0],
        b=evaluations[1],
        measure=measure,
        change=change,
        interval=interval_of_change,
        parts=parts,
        verdict=verdict(interval_of_change),
    )


def _load_texts(
    data: str | Path, split: str | None, tokenizers: Sequence[Any]
) -> tuple[list[TokenizedText], bool]:
    """The text in the tokens of each model, and whether these tokens are the same."""
    first = load_text(data, split, tokenizers[0])
    same_vocabulary = tokenizer_hash(tokenizers[0]) == tokenizer_hash(tokenizers[1])
    # The token before a document is in tokenizer.json, that after it in tokenizer_config.json.
    if same_vocabulary and tokenizers[0].eos_token_id == tokenizers[1].eos_token_id:
        return [first, first], True  # encoded once
    second = load_text(data, split, tokenizers[1])
    # Prepared data has the end-of-text token that it was made with, whatever the tokenizers say.
    limits = [(text.bos_token_id, text.eos_token_id) for text in (first, second)]
    return [first, second], same_vocabulary and limits[0] == limits[1]


def verdict(interval_of_change: tuple[float, float]) -> str:
    """What an interval of A / B - 1 of a loss allows to say of A."""
    low, high = interval_of_change
    if math.isnan(low) or low <= 0 <= high:
        return "not distinguishable"
    return "better" if high < 0 else "worse"


def _change(
    loss_a: np.ndarray, size_a: np.ndarray, loss_b: np.ndarray, size_b: np.ndarray, *, measure: str
) -> np.ndarray:
    """A / B - 1 of a measure, from summed losses and sizes."""
    a, b = loss_a / size_a, loss_b / size_b
    return np.expm1(a - b) if measure == "perplexity" else a / b - 1
