"""How far a run has come."""

import math
from dataclasses import dataclass

from lpa.storage.records import Count, Finite


@dataclass
class TrainState:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        samples: samples taken from the stream; the next one is that number.
        tokens: tokens trained on, those that count in the loss.
        skipped: steps without an update, as loss or gradient were not finite.
        train_seconds: time spent in training steps, without evaluation and saving.
        wall_seconds: time since the run began, all its processes one after another together.
        peak_memory_bytes: the most memory that one of its processes held.
        best_loss, best_step: the lowest validation loss so far and where it was.
        best_eval_tokens: the `train.eval_tokens` of that evaluation, 0 for the whole split; None where an
            earlier version did not say.
        best_data: the hash of the validation split of that evaluation; None where an earlier version did not
            say.
        evaluation_pending: whether the evaluation of this step is still due: a signal came first, or it is
            the final one, which follows the checkpoint of the last step.
        sample_pending: whether the text of `train.sample_every` is still due after this step.
        pending_loss, pending_distill_loss, pending_steps, pending_tokens, pending_seconds: sums since
            the last record in the metrics, so that a resumed run leaves the same records as one
            that was never stopped.
    """

    step: Count = 0
    samples: Count = 0
    tokens: Count = 0
    skipped: Count = 0
    train_seconds: Finite = 0.0
    wall_seconds: Finite = 0.0
    peak_memory_bytes: Count = 0
    best_loss: float | None = None
    best_step: Count | None = None
    best_eval_tokens: Count | None = None
    best_data: str | None = None
    evaluation_pending: bool = False
    sample_pending: bool = False
    pending_loss: float = 0.0
    pending_distill_loss: float = 0.0
    pending_steps: Count = 0
    pending_tokens: Count = 0
    pending_seconds: Finite = 0.0

    def is_best(self, loss: float, limit: int, eval_tokens: int) -> bool:
        """Whether an evaluation is the best so far; one on another part of the split is no match for it.

        Args:
            loss: what was found.
            limit: tokens evaluated on, 0 for the whole split, as at the end.
            eval_tokens: `train.eval_tokens`, likewise.
        """
        if math.isnan(loss):
            return False
        if self.best_loss is None:
            return True
        if limit != eval_tokens:
            return False
        return self.best_eval_tokens not in (None, limit) or not self.best_loss <= loss

    def set_best(self, loss: float, limit: int, data: str | None) -> None:
        """Remember the evaluation of this step as the best; `data` is the hash of the validation split."""
        self.best_loss, self.best_step = loss, self.step
        self.best_eval_tokens, self.best_data = limit, data

    def forget_best(self) -> None:
        """Begin anew with the next evaluation."""
        self.best_loss = self.best_step = self.best_eval_tokens = self.best_data = None
