"""Perplexity of a trained model on prepared data or on text, with its standard error."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lpa.errors import UserError
from lpa.eval.bootstrap import bootstrap
from lpa.eval.scoring import Scores, score
from lpa.eval.tokenized_text import TokenizedText, load_text
from lpa.eval.windows import WindowConfig, max_positions
from lpa.records import Count
from lpa.train.loading import load_with_tokenizer
from lpa.train.perplexity import Perplexity

StepCallback = Callable[[int, int], None]


@dataclass
class Evaluation(Perplexity):
    """A perplexity, how it was taken, and how sure it is.

    Attributes:
        mode: `blocks`, `sliding` or `documents` (see `lpa.eval.scoring.iter_windows`).
        seq_len: most tokens that a prediction was made from.
        stride: how far one window began after the other.
        documents: documents of the text.
        standard_error: of the perplexity, by bootstrap over `resampling_unit`; nan where the text
            has one part.
        interval: in which 95% of the bootstrap's perplexities lie.
        resampling_unit: the parts that were drawn: documents, or blocks where there are few documents.
    """

    mode: str
    seq_len: Count
    stride: Count
    documents: Count
    standard_error: float
    interval: tuple[float, float]
    resampling_unit: str


def evaluate_perplexity(
    model_path: Path,
    data: str | Path,
    *,
    split: str | None = None,
    window_config: WindowConfig | None = None,
    device: str = "auto",
    threads: int = 0,
    on_progress: StepCallback = lambda done, total: None,
) -> Evaluation:
    """Score every token of a text once.

    Args:
        model_path: a run directory or a Hugging Face directory.
        data: a prepared data directory, or text as `lpa prepare` takes it.
        split: of a prepared data directory; by default test where there is one, else validation.
        window_config: how the text is cut.
        threads: CPU threads; 0 leaves it to torch. The same number gives the same bits.
        on_progress: called with tokens scored and tokens in all.

    Raises:
        UserError: no model or no data there, or the data was made with another tokenizer.
    """
    if threads:
        torch.set_num_threads(threads)
    model, tokenizer = load_with_tokenizer(model_path, device)
    window_args = (window_config or WindowConfig()).resolve(max_positions(model))
    text = load_text(data, split, tokenizer)
    check_scorable(data, text)
    return summarize(text, score(model, text, on_progress=on_progress, **window_args), window_args)


def check_scorable(data: str | Path, text: TokenizedText) -> None:
    if len(text.tokens) < 2:
        raise UserError(
            f"{data}: got {len(text.tokens)} token; expected at least 2, one to predict from"
        )


def summarize(text: TokenizedText, scores: Scores, window_args: dict[str, Any]) -> Evaluation:
    """The figures of a scored text."""
    tokens = int(scores.tokens.sum())
    mean = Perplexity.from_total_nll(
        float(scores.loss.sum()), tokens=tokens, words=text.words, bytes=text.bytes
    )
    standard_error, bounds = math.nan, (math.nan, math.nan)
    scored = scores.tokens > 0  # nothing is to be drawn from a part without a token
    if scored.sum() > 1:
        standard_error, bounds = bootstrap(
            lambda loss, count: np.exp(loss / count), scores.loss[scored], scores.tokens[scored]
        )
    return Evaluation(
        **vars(mean),
        mode=window_args["mode"],
        seq_len=window_args["seq_len"],
        stride=window_args["stride"],
        documents=len(text.ends),
        standard_error=standard_error,
        interval=bounds,
        resampling_unit=scores.resampling_unit,
    )
