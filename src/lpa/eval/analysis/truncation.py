"""What a model loses when its projections are cut to a rank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lpa.eval.analysis.projections import Projection, cut, input_directions
from lpa.eval.scoring import score
from lpa.eval.texts import TokenizedText


@dataclass
class Cut:
    """One cut.

    Attributes:
        layer: of the projection that was cut; None where those of all layers were.
        name: of the projection, or of the block (`attention`, `ffn`) all of whose projections were.
        block: `attention` or `ffn`.
        rank: what was left.
        loss: after the cut, in nats per token.
        increase: loss - that of the whole model.
    """

    layer: int | None
    name: str
    block: str
    rank: int
    loss: float
    increase: float


def measure_cuts(
    model: Any,
    pieces: Sequence[Projection],
    text: TokenizedText,
    ranks: Sequence[int],
    *,
    context: int,
    batch_size: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, list[Cut]]:
    """The loss of the whole model, and after each cut that takes anything away.

    Each projection of each layer is cut alone, then all of a block in all layers together.

    Args:
        text: what is scored.
        ranks: what to cut to; a projection that has no more is left as it is.
        report: called with cuts done and cuts in all.
    """

    def loss() -> float:
        scores = score(
            model, text, mode="blocks", context=context, stride=context, batch_size=batch_size
        )
        return float(scores.loss.sum() / scores.tokens.sum())

    directions = {piece: input_directions(piece.module) for piece in pieces}
    groups: list[tuple[int | None, str, list[Projection]]] = [
        (piece.layer, piece.name, [piece]) for piece in pieces
    ]
    for block in ("attention", "ffn"):
        groups.append((None, block, [piece for piece in pieces if piece.block == block]))
    jobs = []
    for layer, name, group in groups:
        for rank in ranks:
            smaller = [piece for piece in group if piece.most_rank > rank]
            if smaller:
                jobs.append((layer, name, rank, smaller))
    whole = loss()
    cuts = []
    for done, (layer, name, rank, group) in enumerate(jobs, 1):
        with cut(group, [directions[piece] for piece in group], rank):
            after = loss()
        cuts.append(Cut(layer, name, group[0].block, rank, after, after - whole))
        report(done, len(jobs))
    return whole, cuts
