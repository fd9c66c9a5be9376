"""Two models on the same text: the paired difference, its interval, and what it allows to say."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from lpa.data.tokenizer import tokenizer_hash
from lpa.errors import UserError
from lpa.eval.bootstrap import bootstrap
from lpa.eval.perplexity import Evaluation, check_scorable, summarize
from lpa.eval.scoring import score
from lpa.eval.tokenized_text import load_text
from lpa.eval.windows import WindowConfig, max_positions
from lpa.train.loading import load_with_tokenizer

_MIN_PARTS = 10


@dataclass
class Comparison:
    """Model A against model B.

    Attributes:
        a, b: each alone.
        measure: `perplexity`, or `bits_per_byte` where the tokenizers differ.
        change: A / B - 1 of that measure; negative where A is better.
        interval: in which 95% of the bootstrap's changes lie; each draw takes the same parts for both.
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
    a: Path,
    b: Path,
    data: str | Path,
    *,
    split: str | None = None,
    window_config: WindowConfig | None = None,
    device: str = "auto",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Score a text with two models and compare them part by part.

    What makes a text easy or hard makes it so for both, so the difference is far surer than either
    perplexity. Without a context given, both get the smaller one.

    Raises:
        UserError: as `evaluate_perplexity`; or the text has too few parts to draw from.
    """
    models, tokenizers = zip(*(load_with_tokenizer(path, device) for path in (a, b)), strict=True)
    window_config = window_config or WindowConfig()
    if window_config.seq_len is None:
        window_config = replace(window_config, seq_len=min(map(max_positions, models)))
    window_args = [window_config.resolve(max_positions(model)) for model in models]
    same = tokenizer_hash(tokenizers[0]) == tokenizer_hash(tokenizers[1])
    first = load_text(data, split, tokenizers[0])
    # The same tokenizer gives the same tokens, so the text is encoded once.
    texts = [first, first if same else load_text(data, split, tokenizers[1])]
    evaluations, scores = [], []
    for model_index, (model, text, args) in enumerate(zip(models, texts, window_args, strict=True)):
        check_scorable(data, text)

        def half(done: int, total: int, model_index: int = model_index) -> None:
            on_progress(model_index * total + done, 2 * total)

        scores.append(score(model, text, on_progress=half, **args))
        evaluations.append(summarize(text, scores[-1], args))

    if not same and scores[0].bytes is None:
        raise UserError(
            f"--data {data}: the models have different tokenizers, so whole documents are compared, and "
            "here are too few; cut the text into more, as in FILE#boundary=line"
        )
    parts = len(scores[0].loss)
    if parts < _MIN_PARTS:
        raise UserError(
            f"--data {data}: got {parts} {scores[0].resampling_unit}; expected at least {_MIN_PARTS} to tell "
            "two models apart: more text, more documents or a smaller --seq-len"
        )
    sizes = [each.tokens if same else each.bytes for each in scores]
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
