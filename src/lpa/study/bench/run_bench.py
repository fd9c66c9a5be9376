"""The benchmark of a preset: `lpa bench`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lpa.callbacks import ProgressCallback
from lpa.device import resolve_device, resolve_dtype
from lpa.display.html import is_figure
from lpa.errors import UserError
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.presets import override_fields, preset_config
from lpa.storage.outputs import check_output_file
from lpa.study.bench.benchmark import BenchResult, measure_models, write_figure


def run_bench(
    preset: str | LPAConfig,
    *,
    placement: str | Sequence[str] = ("attention",),
    rank: int | None = None,
    seq_len: int = 256,
    batch_size: int = 4,
    rounds: int = 5,
    compile: bool = False,
    device: str = "auto",
    dtype: str = "float32",
    threads: int = 0,
    figure: str | Path | None = None,
    overwrite: bool = False,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> BenchResult:
    """Measures the dense model and low-rank models in turns on this machine.

    Args:
        preset: a named architecture, or a configuration.
        placement: the low-rank models beside the dense one, one or several: `attention`, `ffn`, `all`.
        rank: of the low-rank projections; by default the preset's.
        seq_len: tokens per sequence.
        batch_size: sequences per step.
        rounds: how many times the models take turns, after the warmup.
        compile: compile each decoder layer.
        device: `auto`, `cpu`, `cuda` or one of several GPUs, such as `cuda:1`.
        dtype: of the arithmetic: `float32`, `bfloat16`, or `auto` (see `resolve_dtype`).
        threads: of a CPU; 0 leaves the choice to torch.
        figure: an SVG file to write.
        overwrite: replace that file.
        on_progress: called with `(what, done, total)`.

    Returns:
        Time and memory of each model, their ratios to the dense model's, and the rank from which on one
        projection is not faster than dense here.

    Raises:
        UserError: an argument that is not accepted, or a file that exists.

    Example:
        >>> result = lpa.run_bench("nano", seq_len=64, batch_size=1, rounds=3)
        >>> print(result.models["attention"].verdict)
    """
    if threads < 0:
        raise UserError(f"--threads: got {threads}; expected at least 0")
    if figure is not None:
        figure = check_output_file(
            Path(figure), "a figure", is_figure, option="--figure", overwrite=overwrite
        )
    if threads:
        torch.set_num_threads(threads)
    changes = {} if rank is None else {"rank": rank}
    if isinstance(preset, str):
        config = preset_config(preset, **changes)
    else:
        config = LPAConfig(**override_fields(preset.to_diff_dict(), changes))
    chosen = resolve_device(device)
    result = measure_models(
        config,
        [placement] if isinstance(placement, str) else placement,
        seq_len=seq_len,
        batch_size=batch_size,
        rounds=rounds,
        device=chosen,
        dtype=resolve_dtype(dtype, chosen.type),
        compiled=compile,
        on_progress=on_progress,
    )
    if figure is not None:
        write_figure(figure, result)
    return result
