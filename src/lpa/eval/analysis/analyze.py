"""The whole analysis of a model: numbers as JSON, figures as one page."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lpa.callbacks import ProgressCallback
from lpa.errors import UserError
from lpa.eval.analysis.analysis_report import write_analysis_page
from lpa.eval.analysis.attention_heads import HeadStats, head_stats
from lpa.eval.analysis.projections import Projection, as_linear, list_projections
from lpa.eval.analysis.truncation import Truncation, measure_truncations
from lpa.eval.loading import load_with_tokenizer
from lpa.eval.tokenized_text import TokenizedText, load_text
from lpa.eval.windows import WindowConfig
from lpa.lowrank import LowRankLinear, entropy_rank, singular_values, stable_rank
from lpa.model.loading import positions_of
from lpa.model.surgery.projections import check_finite
from lpa.storage.files import write_text_atomic
from lpa.storage.outputs import atomic_directory


@dataclass
class Spectrum:
    """One projection of one layer.

    Attributes:
        layer, name, sublayer: see `Projection`.
        shape: (out_features, in_features) of the effective matrix.
        rank: of the low-rank pair; None where the projection is dense.
        entropy_rank, stable_rank: effective ranks (see `lpa.lowrank.spectra`).
        singular_values: descending.
    """

    layer: int
    name: str
    sublayer: str
    shape: tuple[int, int]
    rank: int | None
    entropy_rank: float
    stable_rank: float
    singular_values: list[float]

    @classmethod
    def from_projection(cls, projection: Projection) -> "Spectrum":
        for parameter in projection.module.parameters():
            check_finite(projection.path, parameter)
        linear = as_linear(projection.module)
        values = singular_values(linear)
        return cls(
            layer=projection.layer,
            name=projection.name,
            sublayer=projection.sublayer,
            shape=(linear.out_features, linear.in_features),
            rank=linear.rank if isinstance(linear, LowRankLinear) else None,
            entropy_rank=entropy_rank(values),
            stable_rank=stable_rank(values),
            singular_values=values.tolist(),
        )


@dataclass
class Analysis:
    """What `lpa analyze` found; the keys of `analysis.json`.

    Attributes:
        model: its path.
        data: the text; None without one, and then no heads and truncations.
        tokens: how many tokens of the text were used.
        seq_len: tokens per window.
        loss: of the whole model on them, in nats per token.
    """

    model: str
    spectra: list[Spectrum]
    data: str | None = None
    tokens: int = 0
    seq_len: int = 0
    loss: float | None = None
    heads: list[HeadStats] | None = None
    truncations: list[Truncation] | None = None


_DEFAULT_TOKENS = 8192


def analyze(
    model_path: Path,
    out: Path,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    tokens: int | None = None,
    seq_len: int | None = None,
    ranks: Sequence[int] | None = None,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "float32",
    overwrite: bool = False,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> Analysis:
    """Analyzes the projections of a model and writes `analysis.json` and `report.html`.

    Args:
        model_path: a run directory or a Hugging Face directory.
        out: the directory to make.
        data: text for attention and truncations, as `evaluate_perplexity` takes it; None: spectra alone.
        tokens: of the beginning of the text, to use; by default 8192.
        seq_len: tokens per window; by default the model's, and at most 512. Required with `data` where the
            model's configuration does not say.
        ranks: what to truncate projections to; by default 1/16, 1/8, 1/4 and 1/2 of the width.
        device, dtype: as in `load_with_tokenizer`; singular values are float64 in any case.
        overwrite: replace what `out` holds.
        on_progress: called as the work progresses.

    Raises:
        UserError: bad input, named, before anything is written.
    """
    if data is None:
        _check_no_text_options(split=split, tokens=tokens, seq_len=seq_len, ranks=ranks)
    tokens = _DEFAULT_TOKENS if tokens is None else tokens
    model, tokenizer = load_with_tokenizer(model_path, device, dtype=dtype, attention="eager")
    positions = positions_of(model.config)
    if seq_len is None and positions is not None:
        seq_len = min(512, positions)
    windows = WindowConfig(seq_len=seq_len, batch_size=batch_size)
    window_args = {} if data is None else windows.resolve(positions)
    width = model.config.get_text_config().hidden_size
    if ranks is None:
        ranks = [max(1, width // part) for part in (16, 8, 4, 2)]
    if min(ranks) < 1:
        raise UserError(f"--ranks: got {min(ranks)}; expected at least 1")
    if tokens < 2:
        raise UserError(f"--tokens: got {tokens}; expected at least 2")
    with atomic_directory(out, "an analysis", overwrite=overwrite) as folder:
        # First of all: a text that cannot be read should not cost the time of the spectra.
        text = None if data is None else _first_tokens(load_text(data, split, tokenizer), tokens)
        projections = list_projections(model)
        spectra = []
        for done, projection in enumerate(projections, 1):
            spectra.append(Spectrum.from_projection(projection))
            on_progress("spectra", done, len(projections))
        result = Analysis(model=str(model_path), spectra=spectra)
        if text is not None:
            result.data, result.tokens = str(data), len(text.tokens)
            result.seq_len = window_args["seq_len"]
            result.heads = head_stats(
                model,
                text.tokens,
                seq_len=window_args["seq_len"],
                eos_token_id=text.eos_token_id,
                on_progress=lambda done, total: on_progress("attention", done, total),
            )
            result.loss, result.truncations = measure_truncations(
                model,
                projections,
                text,
                sorted(set(ranks)),
                seq_len=window_args["seq_len"],
                batch_size=batch_size,
                on_progress=lambda done, total: on_progress("truncations", done, total),
            )
        fields = asdict(result)
        write_text_atomic(folder / "analysis.json", json.dumps(fields, indent=1) + "\n")
        write_analysis_page(folder / "report.html", fields)
    return result


def _check_no_text_options(**options: Any) -> None:
    """Without a text nothing is read in windows and nothing truncated."""
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name.replace('_', '-')}: works only with --data")


def _first_tokens(text: TokenizedText, tokens: int) -> TokenizedText:
    """The first tokens of a text, as one document: only its loss is reported here."""
    if len(text.tokens) < 2:
        raise UserError("--data: got a single token; expected at least 2, one to predict from")
    kept = text.tokens[:tokens]
    return replace(
        text, tokens=kept, ends=np.array([len(kept)]), words=0, bytes=0, document_bytes=None
    )
