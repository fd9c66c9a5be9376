"""Dense and low-rank models side by side on this machine: time, memory, and where low rank stops to pay."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lpa.callbacks import ProgressCallback
from lpa.errors import UserError
from lpa.lowrank import LowRankLinear, break_even_rank
from lpa.model.compile import compile_seconds
from lpa.model.configuration_lpa import LPAConfig
from lpa.model.cost import training_flops_per_token
from lpa.model.layers.latent_cache import LatentCache
from lpa.model.modeling_lpa import LPAForCausalLM
from lpa.model.plan import dense_config
from lpa.storage.files import write_text_atomic
from lpa.study.bench.peak_memory import cpu_peak_memory
from lpa.study.bench.timing import PeakMemory, median_ratio, time_interleaved
from lpa.study.bench.training_step import autocast, random_tokens, synchronize, take_first_steps


@dataclass
class ModelMeasurements:
    """What one model took; the entries of `models` in `lpa bench --json`.

    Attributes:
        step_seconds: median of a training step: forward, backward, clipping, AdamW.
        tokens_per_second, flops_per_second: of training.
        step_ratio, step_ratio_half_iqr: step time over the dense model's, median over rounds, and half the
            range of the middle half, which is nan of one round.
        flops_ratio: of training, over the dense model's.
        peak_memory_bytes: of two steps, weights and optimizer included, above what the process held before;
            on a CPU in another process, where it does not depend on the models before.
        compile_seconds: what the compiler took of the first step.
        prefill_seconds: a prompt of the context in inference.
        decode_tokens_per_second: one token of each sequence after such a prompt, by cache.
    """

    step_seconds: float = 0.0
    tokens_per_second: float = 0.0
    flops_per_second: float = 0.0
    step_ratio: float = 1.0
    step_ratio_half_iqr: float = 0.0
    flops_ratio: float = 1.0
    peak_memory_bytes: int | None = None
    compile_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_tokens_per_second: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One plain sentence on training time against the dense model's."""
        if math.isnan(self.step_ratio_half_iqr):
            return (
                f"{self.step_ratio:.3f} of the dense step time; one round tells nothing of the next"
            )
        saved, promised = 1 - self.step_ratio, 1 - self.flops_ratio
        if self.step_ratio > 1 + self.step_ratio_half_iqr:
            return f"slower than dense here: {self.step_ratio:.3f} of its step time"
        if self.step_ratio > 1 - self.step_ratio_half_iqr:
            return "not faster than dense here, within what runs differ by"
        if promised <= 0:
            return f"saves {saved:.1%} of the dense step"
        return f"saves {saved:.1%} of the dense step, {saved / promised:.0%} of the {promised:.1%} in FLOPs"


@dataclass
class BenchResult:
    """All figures of one `lpa bench`.

    Attributes:
        models: placement -> figures; `none` is the dense model.
        projection_ratios: rank -> time of a low-rank q_proj, forward and backward, over the dense one's.
        break_even_rank: `flops`, by arithmetic, and `measured`, the highest of these ranks below which all
            take less time than the dense map (0: none does).
    """

    models: dict[str, ModelMeasurements]
    projection_ratios: dict[int, float]
    break_even_rank: dict[str, float]


def measure_models(
    config: LPAConfig,
    placements: Sequence[str],
    *,
    seq_len: int,
    batch_size: int,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> BenchResult:
    """Measure models of one size, the dense one first, in turns.

    Args:
        config: of the low-rank model; the placements are put in.
        seq_len, batch_size: tokens per sequence and sequences per step.
        dtype: of the arithmetic. Weights and optimizer states are float32 in training and of this dtype in
            inference.
        on_progress: called with `(what, done, total)`.

    Raises:
        UserError: a value below 1, a context beyond the positions, no compiler, or a process that measures
            peak memory failed.
    """
    for name, value in (("seq-len", seq_len), ("batch-size", batch_size), ("rounds", rounds)):
        if value < 1:
            raise UserError(f"--{name}: got {value}; expected at least 1")
    if seq_len > config.max_position_embeddings:
        raise UserError(
            f"--seq-len: got {seq_len}; the model has {config.max_position_embeddings} positions"
        )
    dense = dense_config(config)
    configs = {"none": dense}
    for placement in placements:
        if placement != "none":
            changes = {"placement": placement, "ranks": None}
            configs[placement] = LPAConfig(**(config.to_diff_dict() | changes))
    tokens = random_tokens(config, batch_size, seq_len, device)

    if device.type == "cuda":
        # From its first products on cuBLAS keeps work space, whichever model they are of.
        take_first_steps(dense, tokens, dtype, compiled=False)
    models: dict[str, LPAForCausalLM] = {}
    steps: dict[str, Callable[[], object]] = {}
    measurements: dict[str, ModelMeasurements] = {}
    for name, one in configs.items():
        on_progress("first steps", len(models), len(configs))
        before = compile_seconds()
        with PeakMemory(device) as peak:
            models[name], steps[name] = take_first_steps(one, tokens, dtype, compiled)
        measurements[name] = ModelMeasurements(
            peak_memory_bytes=peak.bytes, compile_seconds=compile_seconds() - before
        )
    on_progress("first steps", len(models), len(configs))
    if device.type == "cpu":
        on_progress("peak memory", 0, 1)
        peaks = cpu_peak_memory(
            configs, batch_size=batch_size, seq_len=seq_len, dtype=dtype, compiled=compiled
        )
        for name, peak_bytes in peaks.items():
            measurements[name].peak_memory_bytes = peak_bytes
        on_progress("peak memory", 1, 1)

    seconds = _measure_interleaved("training", steps, rounds, device, on_progress)
    for name, one in configs.items():
        of_model = measurements[name]
        of_model.step_seconds = statistics.median(seconds[name])
        of_model.tokens_per_second = tokens.numel() / of_model.step_seconds
        flops = training_flops_per_token(one, seq_len)
        of_model.flops_per_second = flops * of_model.tokens_per_second
        of_model.flops_ratio = flops / training_flops_per_token(dense, seq_len)
        of_model.step_ratio, of_model.step_ratio_half_iqr = median_ratio(seconds, name, "none")
    steps.clear()  # and with them the optimizers
    for model in models.values():
        model.eval().to(dtype)
    _measure_inference(models, measurements, tokens, rounds, device, on_progress)
    ratios = _projection_ratios(config, batch_size * seq_len, rounds, device, dtype, on_progress)
    return BenchResult(measurements, ratios, _measured_break_even(config, ratios))


def _measure_interleaved(
    what: str,
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    on_progress: ProgressCallback,
) -> dict[str, list[float]]:
    """Let runs take turns, each waited for, with a progress bar."""
    total, done = (rounds + 1) * len(runs), 0

    def on_tick() -> None:
        nonlocal done
        done += 1
        on_progress(what, done, total)

    def waited(run: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            run()
            synchronize(device)

        return call

    return time_interleaved(
        {n: waited(run) for n, run in runs.items()}, rounds=rounds, on_tick=on_tick
    )


def _measure_inference(
    models: dict[str, LPAForCausalLM],
    measurements: dict[str, ModelMeasurements],
    tokens: torch.Tensor,
    rounds: int,
    device: torch.device,
    on_progress: ProgressCallback,
) -> None:
    """Prefill, and decoding with each cache that a model has use for."""
    prompt = tokens[:, :-1] if tokens.shape[1] > 1 else tokens
    prefills: dict[str, Callable[[], object]] = {}
    decodes: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        for name, model in models.items():

            def prefill(model: LPAForCausalLM = model) -> Any:
                return model(prompt, use_cache=True, logits_to_keep=1)

            prefills[name] = prefill
            decodes[f"{name} plain"] = decoder(model, prefill().past_key_values, tokens[:, -1:])
            if model.config.projection_rank("v_proj", 0) is not None:
                cache = LatentCache(config=model.config)
                model(prompt, past_key_values=cache, logits_to_keep=1)
                decodes[f"{name} latent"] = decoder(model, cache, tokens[:, -1:])
        for name, values in _measure_interleaved(
            "prefill", prefills, rounds, device, on_progress
        ).items():
            measurements[name].prefill_seconds = statistics.median(values)
        for name, values in _measure_interleaved(
            "decoding", decodes, 4 * rounds, device, on_progress
        ).items():
            placement, cache_name = name.split()
            rate = tokens.shape[0] / statistics.median(values)
            measurements[placement].decode_tokens_per_second[cache_name] = rate


def decoder(model: LPAForCausalLM, cache: Any, token: torch.Tensor) -> Callable[[], None]:
    """A function that decodes one token of each sequence and takes it back from the cache."""

    def decode() -> None:
        model(token, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return decode


def _projection_ratios(
    config: LPAConfig,
    tokens: int,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: ProgressCallback,
) -> dict[int, float]:
    """Time of a low-rank q_proj over the dense one's, by rank from 1/16 to 5/8 of the width."""
    in_features, out_features = config.projection_shape("q_proj")
    limit = min(in_features, out_features)
    ranks = sorted({max(1, limit * part // 16) for part in range(1, 11)})
    x = torch.randn(tokens, in_features, device=device, requires_grad=True)

    def both_ways(module: nn.Module) -> Callable[[], None]:
        def call() -> None:
            with autocast(device, dtype):
                output = module(x)
            output.backward(gradient)
            module.zero_grad(set_to_none=True)
            x.grad = None

        return call

    gradient = torch.randn(tokens, out_features, device=device, dtype=dtype)
    runs = {"dense": both_ways(nn.Linear(in_features, out_features, bias=False, device=device))}
    for rank in ranks:
        runs[str(rank)] = both_ways(LowRankLinear(in_features, out_features, rank, device=device))
    seconds = _measure_interleaved("one projection", runs, 2 * rounds, device, on_progress)
    return {rank: median_ratio(seconds, str(rank), "dense")[0] for rank in ranks}


def _measured_break_even(config: LPAConfig, ratios: dict[int, float]) -> dict[str, float]:
    measured = 0
    for rank, value in ratios.items():
        if value >= 1:
            break
        measured = rank
    return {
        "flops": break_even_rank(*config.projection_shape("q_proj")),
        "measured": float(measured),
    }


def write_figure(path: Path, result: BenchResult) -> None:
    """Write `draw_bench` as an SVG."""
    from lpa.display.html import draw_svg

    write_text_atomic(path, draw_svg(lambda figure: draw_bench(figure, result), size=(9, 3.8)))


def draw_bench(figure: Any, result: BenchResult) -> None:
    """Step times over the dense model's beside FLOPs, and one projection by rank."""
    from lpa.display.html import COLORS

    left, right = figure.subplots(1, 2)
    names = list(result.models)
    positions = range(len(names))
    left.bar(
        [p - 0.2 for p in positions],
        [result.models[n].step_ratio for n in names],
        0.4,
        label="step time",
        color=COLORS[0],
    )
    left.bar(
        [p + 0.2 for p in positions],
        [result.models[n].flops_ratio for n in names],
        0.4,
        label="FLOPs",
        color=COLORS[1],
    )
    left.set_xticks(list(positions), names)
    left.set_ylabel("of the dense model's")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)  # above the bars
    ranks, ratios = list(result.projection_ratios), list(result.projection_ratios.values())
    even = result.break_even_rank["flops"]
    right.plot(ranks, ratios, marker="o", color=COLORS[0], label="time")
    right.plot(ranks, [rank / even for rank in ranks], color=COLORS[1], label="FLOPs")
    right.axhline(1, color="0.6", linewidth=0.8)
    right.set_xlabel("rank of q_proj")
    right.set_ylabel("of the dense projection's")
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
