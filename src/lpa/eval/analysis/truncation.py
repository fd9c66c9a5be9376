"""What a model loses when its projections are truncated to a rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lpa.callbacks import StepCallback
from lpa.eval.analysis.projections import Projection, input_directions, truncate_projections
from lpa.eval.text_scores import score
from lpa.eval.tokenized_text import TokenizedText


@dataclass
class Truncation:
    """One truncation.

    Attributes:
        layer: of the projection that was truncated; None where those of all layers were.
        name: of the projection, or of the block (`attention`, `ffn`) all of whose projections were.
        sublayer: `attention` or `ffn`.
        rank: what was left.
        loss: after the truncation, in nats per token.
        loss_increase: loss - that of the whole model.
    """

    layer: int | None
    name: str
    sublayer: str
    rank: int
    loss: float
    loss_increase: float


def measure_truncations(
    model: Any,
    projections: Sequence[Projection],
    text: TokenizedText,
    ranks: Sequence[int],
    *,
    seq_len: int,
    batch_size: int,
    on_progress: StepCallback = lambda done, total: None,
) -> tuple[float, list[Truncation]]:
    """The loss of the whole model, and after each truncation that removes anything.

    Each projection of each layer is truncated alone, then all of a block in all layers together.

    Args:
        text: what is scored.
        ranks: what to truncate to; a projection that has no more is left as it is.
        on_progress: called with truncations done and in all.
    """

    def loss() -> float:
        scores = score(
            model, text, mode="blocks", seq_len=seq_len, stride=seq_len, batch_size=batch_size
        )
        return float(scores.loss.sum() / scores.tokens.sum())

    directions = {projection: input_directions(projection.module) for projection in projections}
    groups: list[tuple[int | None, str, list[Projection]]] = [
        (projection.layer, projection.name, [projection]) for projection in projections
    ]
    for sublayer in ("attention", "ffn"):
        groups.append(
            (
                None,
                sublayer,
                [projection for projection in projections if projection.sublayer == sublayer],
            )
        )
    jobs = []
    for layer, name, group in groups:
        for rank in ranks:
            smaller = [projection for projection in group if projection.max_rank > rank]
            if smaller:
                jobs.append((layer, name, rank, smaller))
    whole = loss()
    truncations = []
    for done, (layer, name, rank, group) in enumerate(jobs, 1):
        with truncate_projections(group, [directions[projection] for projection in group], rank):
            after = loss()
        truncations.append(Truncation(layer, name, group[0].sublayer, rank, after, after - whole))
        on_progress(done, len(jobs))
    return whole, truncations
