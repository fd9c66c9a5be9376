"""Perplexity of a trained model on prepared data or on text, with its standard error."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lpa.callbacks import StepCallback
from lpa.data.tokenizer import check_encodes_documents, check_vocabulary
from lpa.errors import LPAWarning, UserError
from lpa.eval.bootstrap import bootstrap
from lpa.eval.loading import load_with_tokenizer
from lpa.eval.text_scores import Scores, score
from lpa.eval.tokenized_text import TokenizedText, load_text
from lpa.eval.windows import WindowConfig
from lpa.model.loading import positions_of
from lpa.scoring.perplexity import Perplexity
from lpa.storage.records import Count


@dataclass
class Evaluation(Perplexity):
    """A perplexity, how it was taken, and how sure it is.

    Attributes:
        mode: `blocks`, `sliding` or `documents` (see `lpa.eval.text_scores.iter_windows`).
        seq_len: most tokens that a prediction was made from.
        stride: how far one window began after the other.
        documents: documents of the text.
        standard_error: of the perplexity, by bootstrap over `resampling_unit`; nan where the text
            has one part.
        interval: 95% bootstrap interval of the perplexity.
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
    model: PreTrainedModel | str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    mode: str | None = None,
    seq_len: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "float32",
    threads: int = 0,
    tokenizer: Any = None,
    on_progress: StepCallback = lambda done, total: None,
) -> Evaluation:
    """Computes the perplexity of a model on a text; every token that another comes before is scored once.

    Args:
        model: a run directory, a Hugging Face directory, or a live model, which stays on its device.
        data: a prepared data directory, or text as `lpa prepare` takes it.
        split: of a prepared data directory; by default test where there is one, else validation.
        mode: `blocks` (windows that do not overlap), `sliding` (windows that overlap) or `documents` (each
            document alone); by default `sliding` where there is a stride, else `blocks`.
        seq_len: tokens per window; by default as many positions as the model was made for. Required where its
            configuration does not say, as that of Bloom or Mamba.
        stride: tokens from the start of one window to the start of the next; by default half of `seq_len`.
        batch_size: windows per forward pass.
        device: where a model that is loaded runs: `auto`, `cpu`, `cuda`, …
        dtype: of its weights and arithmetic: `float32`, `bfloat16`, or `auto`, which is bfloat16 on a GPU or
            CPU with units for it.
        threads: CPU threads; 0 leaves it to torch. The same number gives the same bits.
        tokenizer: the tokenizer of a live model; a path has its own.
        on_progress: called with tokens scored and tokens in all.

    Returns:
        An `Evaluation`: mean loss (nats per token), perplexity and its error, bits per byte.

    Raises:
        UserError: no model or no data there, or the data was made with another tokenizer.

    Warns where the text has unknown tokens.

    Example:
        evaluation = lpa.evaluate_perplexity("runs/lpa", "data")
        print(evaluation.perplexity, evaluation.standard_error)
    """
    if threads:
        torch.set_num_threads(threads)
    with open_for_scoring(model, tokenizer, device, dtype) as (scored, its_tokenizer):
        windows = WindowConfig(mode, seq_len, stride, batch_size)
        window_args = windows.resolve(positions_of(scored.config))
        text = load_text(data, split, its_tokenizer)
        check_scorable(data, text, scored.config)
        scores = score(scored, text, on_progress=on_progress, **window_args)
    return summarize(text, scores, window_args)


@contextmanager
def open_for_scoring(
    model: PreTrainedModel | str | Path,
    tokenizer: Any,
    device: str,
    dtype: str,
    *,
    name: str = "tokenizer",
) -> Iterator[tuple[Any, Any]]:
    """A model in evaluation mode and its tokenizer, loaded where `model` is a path.

    A live model is in its own mode again afterwards.

    Args:
        name: what an error calls the tokenizer.

    Raises:
        UserError: a live model without a tokenizer that documents can be encoded with, a path with one, or
            something else.
    """
    if not isinstance(model, PreTrainedModel | str | Path):
        raise UserError(
            f"model: got a {type(model).__name__}; expected a PreTrainedModel of transformers (merge "
            "adapters with merge_and_unload first), or the path of a directory"
        )
    if not isinstance(model, PreTrainedModel):
        if tokenizer is not None:
            raise UserError(f"{name}: works only with a live model; got the path {model}")
        yield load_with_tokenizer(Path(model), device, dtype=dtype)
        return
    if tokenizer is None:
        raise UserError(f"{name}: got none; expected that of the live {type(model).__name__}")
    check_encodes_documents(tokenizer, name)
    training = model.training
    try:
        yield model.eval(), tokenizer
    finally:
        model.train(training)


def check_scorable(data: str | Path, text: TokenizedText, config: Any) -> None:
    """Refuse a text that a model cannot be scored on, and warn of one that flatters it.

    Args:
        config: the model's.

    Raises:
        UserError: the text has no token to predict, or one that the model has not.
    """
    if len(text.tokens) < 2:
        raise UserError(
            f"{data}: got {len(text.tokens)} token; expected at least 2, one to predict from"
        )
    check_vocabulary(int(text.tokens.max()) + 1, config, f"{data}: the text")
    if text.unknown_tokens:
        warnings.warn(
            f"{data}: {text.unknown_share} are unknown ones, which are cheap to predict and stand for any "
            "text; do not compare word perplexity and bits per byte with those of another tokenizer",
            LPAWarning,
            stacklevel=2,
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
