"""Studies of rivals whose perplexities follow a known law."""

import math

from lpa.study.design.grid import expand_grid
from lpa.study.design.study_index import StudyIndex
from lpa.study.results.study_results import StudyResult, VariantRow

NOISE = {0: 1.0, 1: 1.01, 2: 0.995}


def rival_study(length: float, saved: float) -> StudyResult:
    """LPA has the loss that dense would have with `saved` times LPA's FLOPs."""
    grid = expand_grid("rivals", "tiny", tokens_per_parameter=length, only=["dense", "LPA"])
    index = StudyIndex(**vars(grid), seeds=3, split="test", data="", data_hashes={}, runs=[])
    rows = []
    for v in grid.variants:
        flops = float(v.train_flops_per_token) * v.tokens * (saved if v.name == "LPA" else 1)
        losses = {seed: 20 * noise * flops**-0.05 for seed, noise in NOISE.items()}
        perplexities = {seed: math.exp(loss) for seed, loss in losses.items()}
        rows.append(
            VariantRow(
                v.name,
                v.baseline,
                v.parameters,
                v.train_flops_per_token,
                v.tokens,
                None,
                [],
                perplexities,
            )
        )
    return StudyResult(index, rows, {})
