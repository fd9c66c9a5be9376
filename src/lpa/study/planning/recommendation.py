"""A rank for the attention of a model, and the reasons for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpa.errors import UserError
from lpa.lowrank import break_even_rank
from lpa.model.configuration_lpa import ATTENTION_PROJECTIONS, LPAConfig
from lpa.model.plan import dense_config, kv_cache_bytes, model_cost, replace_fields
from lpa.storage.records import parse_value, read_json

_ANALYSIS_FILE = "analysis.json"
_ENERGY = 0.9  # of a dense matrix, which the rank shall keep: Σ of the first σ² over Σ of all


@dataclass
class Recommendation:
    """A rank, and why.

    Attributes:
        rank: of the attention projections.
        reasons: a sentence each, in the order in which they changed the rank.
    """

    rank: int
    reasons: list[str]


@dataclass
class _BreakEven:
    """What is read of the record that `lpa bench --json` prints."""

    flops: float
    measured: float


@dataclass
class _Spectrum:
    """What is read of a projection in the record of `lpa analyze`."""

    name: str
    shape: list[int]
    rank: int | None
    singular_values: list[float]


def recommend_rank(
    config: LPAConfig, *, seq_len: int, bench: Path | None = None, analysis: Path | None = None
) -> Recommendation:
    """A rank by convention and by what is measured.

    It begins with a quarter of the width. The spectra of a dense run move it to the number of singular
    values that hold 90% of the squares in the attention projections on average (the part of a matrix that
    the truncated SVD keeps, Eckart & Young 1936), between an eighth and a half of the width. The break-even
    ranks, by FLOPs and as measured, are its limits. Each rank is rounded down to a multiple of 8.

    Args:
        config: of the model.
        seq_len: tokens per sequence, by which FLOPs are counted.
        bench: what `lpa bench --json` printed for a model of this width.
        analysis: the directory that `lpa analyze` wrote for a dense run of this width.

    Raises:
        UserError: a record that cannot be read or is of another width, or spectra of low-rank projections.
    """
    width = config.hidden_size
    even = min(break_even_rank(*config.projection_shape(name)) for name in ATTENTION_PROJECTIONS)
    rank = _whole(width / 4)
    reasons = [
        f"a quarter of the width {width} is {rank}, a convention: in 300 steps of models of 2 million "
        "parameters, ranks of an eighth to a half of it were not shown to differ; nothing longer or "
        "larger was tried"
    ]
    if analysis is not None:
        needed = _rank_of_energy(_read_spectra(analysis, config))
        rank = min(max(_whole(needed), _whole(width / 8)), _whole(width / 2))
        reasons.append(
            f"{analysis}: {needed:.0f} singular values hold {_ENERGY:.0%} of the energy of the attention "
            f"projections of the dense run on average, so the rank is {rank}"
        )
    if rank >= even:
        rank = _whole(even - 1)
        reasons.append(f"from {even:.0f} on a pair costs as much as the dense matrix, so {rank}")
    if bench is not None:
        measured = _read_break_even(bench, config).measured
        if rank > measured >= 1:
            rank = _whole(measured)
            reasons.append(f"{bench}: above {measured:.0f} a pair is slower here, so {rank}")
        elif measured < 1:
            reasons.append(
                f"{bench}: no rank made a pair faster here; it saves memory and FLOPs alone"
            )
        else:
            reasons.append(f"{bench}: up to {measured:.0f} a pair is faster here")
    return Recommendation(rank, [*reasons, _savings(config, rank, seq_len)])


def _whole(rank: float) -> int:
    """A multiple of 8, which devices multiply best, where there is one below."""
    return int(rank) // 8 * 8 or max(1, int(rank))


def _savings(config: LPAConfig, rank: int, seq_len: int) -> str:
    chosen = replace_fields(config, placement="attention", rank=rank, ranks=None)
    dense = dense_config(config)
    parts = []
    for kind, label in (("params", "parameters"), ("flops", "FLOPs")):
        ratio = model_cost(chosen, kind, seq_len) / model_cost(dense, kind, seq_len)
        parts.append(f"{ratio:.1%} of the dense {label}")
    cache = kv_cache_bytes(chosen, itemsize=1)
    parts.append(f"{cache['latent'] / cache['plain']:.0%} of its cache with latents")
    return f"rank {rank} takes {', '.join(parts)}"


def _rank_of_energy(spectra: list[_Spectrum]) -> float:
    """How many singular values hold the fraction `_ENERGY`, mean over the projections."""
    counts = []
    for spectrum in spectra:
        kept = np.cumsum(np.square(spectrum.singular_values))
        counts.append(1 + int(np.searchsorted(kept, _ENERGY * kept[-1])))
    return float(np.mean(counts))


def _read_spectra(analysis: Path, config: LPAConfig) -> list[_Spectrum]:
    path = analysis / _ANALYSIS_FILE if analysis.is_dir() else analysis
    fields = _Spectrum.__dataclass_fields__
    records = _entry(path, "spectra", list[dict[str, Any]])
    given = [{name: record[name] for name in fields if name in record} for record in records]
    spectra = [
        spectrum
        for spectrum in parse_value(given, list[_Spectrum], where=path, field="spectra")
        if spectrum.name in ATTENTION_PROJECTIONS
    ]
    if not spectra:
        raise UserError(f"--analysis {path}: has no spectra of {', '.join(ATTENTION_PROJECTIONS)}")
    for spectrum in spectra:
        shape = [*config.projection_shape(spectrum.name)][::-1]
        if spectrum.shape != shape:
            raise UserError(
                f"--analysis {path}: its {spectrum.name} is {_by(spectrum.shape)}; expected {_by(shape)}, "
                "that of the model"
            )
        if spectrum.rank is not None or not spectrum.singular_values:
            raise UserError(
                f"--analysis {path}: its {spectrum.name} is of low rank; expected a dense run"
            )
    return spectra


def _read_break_even(bench: Path, config: LPAConfig) -> _BreakEven:
    even = _entry(bench, "break_even_rank", _BreakEven)
    expected = break_even_rank(*config.projection_shape("q_proj"))
    if abs(even.flops - expected) > 0.5:
        raise UserError(
            f"--bench {bench}: is of a model whose q_proj breaks even at rank {even.flops:.0f}; expected "
            f"{expected:.0f}, that of the model"
        )
    return even


def _entry(path: Path, name: str, kind: Any) -> Any:
    record = read_json(path, dict[str, Any])
    if name not in record:
        raise UserError(
            f"{path}: {name}: is missing; expected the record of `lpa bench` or `lpa analyze`"
        )
    return parse_value(record[name], kind, where=path, field=name)


def _by(shape: list[int]) -> str:
    return " × ".join(map(str, shape))
