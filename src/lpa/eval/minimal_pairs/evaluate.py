"""How often a model finds a sentence likelier than its ungrammatical twin."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lpa.callbacks import StepCallback
from lpa.data.document_limits import default_bos_token
from lpa.data.text_encoder import TextEncoder
from lpa.data.tokenizer import check_vocabulary
from lpa.errors import UserError
from lpa.eval.minimal_pairs.pairs import MinimalPair, pairs_from_data, read_pairs
from lpa.eval.perplexity import open_for_scoring
from lpa.model.loading import positions_of
from lpa.scoring.losses import token_losses
from lpa.scoring.windows import Window
from lpa.storage.records import Count


@dataclass
class MinimalPairScore:
    """How many pairs a model decides for the grammatical sentence.

    Attributes:
        accuracy: the mean of those of the phenomena, so that each counts alike; 0.5 is chance.
        standard_error: of it, where pairs are drawn independently of each other.
        by_phenomenon: the accuracy of each.
        pairs: how many each rests on.
        left_out: pairs with a sentence longer than what the model reads at once.
    """

    accuracy: float
    standard_error: float
    by_phenomenon: dict[str, float]
    pairs: dict[str, Count]
    left_out: Count


def evaluate_minimal_pairs(
    model: PreTrainedModel | str | Path,
    data: str | Path | None = None,
    *,
    pairs: str | Path | None = None,
    split: str | None = None,
    pairs_per_phenomenon: int = 1000,
    batch_size: int = 32,
    device: str = "auto",
    dtype: str = "float32",
    threads: int = 0,
    tokenizer: Any = None,
    on_progress: StepCallback = lambda done, total: None,
) -> MinimalPairScore:
    """Counts how often a model prefers a sentence to the same one with a fault in its grammar.

    The likelihood of a whole sentence decides, read as the beginning of a document, as in BLiMP (Warstadt
    et al. 2020, arXiv 1912.00582). A tie is a wrong answer.

    Args:
        model: a run directory, a Hugging Face directory, or a live model, which stays on its device.
        data: English text to make pairs of (`lpa.eval.minimal_pairs.rules` says how): a prepared data
            directory, or text as `lpa prepare` takes it.
        pairs: instead, a JSON Lines file of pairs in the form of BLiMP: `sentence_good`, `sentence_bad`, and
            the phenomenon as `UID`.
        split: of a prepared data directory; by default test where there is one, else validation.
        pairs_per_phenomenon: at most; where there are more, evenly many from everywhere in the text.
        batch_size: sentences per forward pass.
        device: where a model that is loaded runs: `auto`, `cpu`, `cuda`, …
        dtype: as in `evaluate_perplexity`.
        threads: CPU threads; 0 leaves it to torch.
        tokenizer: that of a live model; of a path it is the one there.
        on_progress: called with sentences scored and sentences in all.

    Raises:
        UserError: no model or no text there, no pair in it, or both or none of `data` and `pairs`.
    """
    if (data is None) == (pairs is None):
        given = "neither" if data is None else "both"
        raise UserError(
            f"--data, --pairs: got {given}; expected one of them: text to make pairs from, or a file of pairs"
        )
    if pairs is not None and split is not None:
        raise UserError(f"--split {split}: a file of pairs has no splits")
    if pairs_per_phenomenon < 1:
        raise UserError(f"--pairs-per-phenomenon: got {pairs_per_phenomenon}; expected at least 1")
    if batch_size < 1:
        raise UserError(f"--batch-size: got {batch_size}; expected at least 1")
    if threads:
        torch.set_num_threads(threads)
    found = read_pairs(Path(pairs)) if pairs is not None else pairs_from_data(str(data), split)
    chosen = _choose(found, pairs_per_phenomenon)
    if not chosen:
        raise UserError(f"{data or pairs}: got no minimal pair; expected English text in sentences")
    with open_for_scoring(model, tokenizer, device, dtype) as (scored, its_tokenizer):
        return _score(scored, its_tokenizer, chosen, batch_size, on_progress)


def _choose(pairs: Iterable[MinimalPair], most: int) -> list[MinimalPair]:
    by_phenomenon = defaultdict(list)
    for pair in pairs:
        by_phenomenon[pair.phenomenon].append(pair)
    chosen = []
    for of_one in by_phenomenon.values():
        count = min(most, len(of_one))
        chosen += [of_one[index * len(of_one) // count] for index in range(count)]
    return chosen


def _score(
    model: Any, tokenizer: Any, pairs: list[MinimalPair], batch_size: int, on_progress: StepCallback
) -> MinimalPairScore:
    encoder = TextEncoder.of(tokenizer)
    first = default_bos_token(tokenizer)
    first = tokenizer.eos_token_id if first is None else first
    positions = positions_of(model.config)
    windows, kept = [], []
    for pair in pairs:
        both = [np.array([first, *encoder.encode(text)]) for text in (pair.good, pair.bad)]
        # The last token is a target alone, which takes no position.
        if positions is None or max(map(len, both)) - 1 <= positions:
            windows += [Window(ids, len(ids) - 1, len(ids)) for ids in both]
            kept.append(pair)
    if windows:
        highest = max(int(window.ids.max()) for window in windows)
        check_vocabulary(highest + 1, model.config, "pairs: a sentence")
    nlls = _negative_log_likelihoods(
        model, windows, tokenizer.eos_token_id, batch_size, on_progress
    )
    good, bad = nlls.reshape(-1, 2).T
    right = defaultdict(list)
    for pair, is_right in zip(kept, good < bad, strict=True):
        right[pair.phenomenon].append(bool(is_right))
    if not right:
        raise UserError(f"pairs: all are longer than the {positions} tokens that the model reads")
    accuracies = {name: float(np.mean(answers)) for name, answers in right.items()}
    variances = [p * (1 - p) / len(right[name]) for name, p in accuracies.items()]
    return MinimalPairScore(
        accuracy=float(np.mean(list(accuracies.values()))),
        standard_error=float(np.sqrt(sum(variances))) / len(variances),
        by_phenomenon=accuracies,
        pairs={name: len(answers) for name, answers in right.items()},
        left_out=len(pairs) - len(kept),
    )


def _negative_log_likelihoods(
    model: Any,
    windows: list[Window],
    eos_token_id: int | None,
    batch_size: int,
    on_progress: StepCallback,
) -> np.ndarray:
    """(windows,), in nats."""
    totals = np.zeros(len(windows))
    # Sentences of like length together, as padding costs.
    order = np.argsort([len(window.ids) for window in windows], kind="stable")
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        losses = token_losses(model, [windows[index] for index in batch], eos_token_id=eos_token_id)
        totals[batch] = [loss.sum() for loss in losses]
        on_progress(start + len(batch), len(windows))
    return totals
