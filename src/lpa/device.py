"""The machine underneath: which device, in which precision, how fast, how much memory."""

import math
import re
import sys
import time
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpa.errors import LPAWarning, UserError


def resolve_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The device of this process by name; `auto` is a GPU where there is one, else the CPU.

    Nothing is computed on a GPU, since that would make a context on it, and no other than the process's own
    is touched. The one that is found becomes the current GPU, of which torch keeps the random state.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:N`, …
        local_rank: which of the machine's processes this is. Of several visible GPUs it takes that number;
            where the launcher shows each process its own, the only one.

    Raises:
        UserError: there is no such device.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    accepted = "auto, cpu" + (f", cuda or cuda:0 to cuda:{count - 1}" if count else "")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: got {name!r}; expected {accepted}") from error
    if device.type == "cpu" and not device.index:
        return device
    if device.type != "cuda":  # some have no float64, in which losses are added up
        raise UserError(f"device: got {name!r}; expected {accepted}")
    index = device.index
    if index is None:
        index = 0 if count == 1 else local_rank
    elif local_rank:
        raise UserError(
            f"device: got {name!r} for several processes on one machine; expected cuda, so that each "
            "process takes its own GPU"
        )
    if index >= count:
        found = f"; there are {count} for local rank {local_rank}" if count else ""
        raise UserError(f"device: got {name!r}; not available here, expected {accepted}{found}")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def send_to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies of a batch's tensors on a device.

    To a GPU they go through pinned memory and on a separate stream: the host waits for nothing, and the
    GPU copies beside its other work.
    """
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    copying, computing = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        copies = {
            name: (tensor if tensor.is_pinned() else tensor.pin_memory()).to(
                device, non_blocking=True
            )
            for name, tensor in tensors.items()
        }
    computing.wait_stream(copying)
    for copy in copies.values():
        copy.record_stream(
            computing
        )  # its memory is not given away before that stream is done with it
    return copies


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def resolve_dtype(name: str, device_type: str) -> torch.dtype:
    """The precision of arithmetic by name; `auto` is `fast_dtype` of the device.

    It warns of bfloat16 where a CPU or a GPU has no units for it and float32 is faster.

    Raises:
        UserError: another name than auto, float32 or bfloat16. float16 is none of them: without a scaled loss
            its range is too small for gradients.
    """
    if name == "auto":
        return fast_dtype(device_type)
    if name not in ("float32", "bfloat16"):
        raise UserError(f"dtype: got {name!r}; expected auto, float32 or bfloat16")
    if (
        name == "bfloat16"
        and device_type in ("cpu", "cuda")
        and fast_dtype(device_type) != torch.bfloat16
    ):
        warnings.warn(
            f"dtype: bfloat16 is slower than float32 on this {'CPU' if device_type == 'cpu' else 'GPU'}, "
            "which does not support it natively",
            LPAWarning,
            stacklevel=1,  # so that it is shown once, whoever asks
        )
    return getattr(torch, name)


def planned_device_type(name: str) -> str:
    """The kind of device that a name will stand for, also of a machine whose GPUs are not here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name.split(":")[0]


def dtype_name(dtype: torch.dtype) -> str:
    """The name by which a configuration or an option knows a precision."""
    return str(dtype).removeprefix("torch.")


@cache
def fast_dtype(device_type: str) -> torch.dtype:
    """bfloat16 where a CPU or an NVIDIA GPU multiplies it in hardware, float32 on every other device.

    Of a GPU that is not in this machine, as when a run on a cluster is planned, nothing is known but that
    all since 2020 have units for bfloat16.
    """
    if device_type == "cpu":
        return _fast_cpu_dtype(torch.cpu.get_capabilities())
    if device_type == "cuda":
        missing = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        return torch.float32 if missing else torch.bfloat16
    return torch.float32


def _fast_cpu_dtype(capabilities: Mapping[str, Any]) -> torch.dtype:
    units = ("avx512_bf16", "amx_bf16", "bf16")  # the last is ARM's name
    return torch.bfloat16 if any(capabilities.get(unit) for unit in units) else torch.float32


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the GPU if that is the device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Of this program alone; getrusage on Linux starts from the peak of whoever started it.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# Dense peak in 10^12 FLOP/s of bfloat16 and of float32 with TF32 off (torch's default), by the name that
# the driver gives; the first that fits counts. Half of the "with sparsity" figures where data sheets
# give only those. From NVIDIA's data sheets of V100 (2020), A100 (2021), H100 (2023), H200 (2024),
# HGX B200 (2025), L4 and L40S (2023), A10 (2021, also for the A10G of AWS, which NVIDIA does not list; it
# says 70 there), A30, A40 and the architecture papers of GA102 (RTX 3090) and Ada (RTX 4090), where
# bfloat16 accumulates in float32. V100 has no bfloat16 units, so its figure is None there.
_PEAK_TFLOPS: list[tuple[str, float | None, float]] = [
    (r"\bB200\b", 2250, 75),
    (r"\bH200 NVL\b", 835.5, 60),
    (r"\bH200\b", 989.4, 67),
    (r"\bH100 NVL\b", 835.5, 60),
    (r"\bH100 PCIe\b", 756, 51),
    (r"\bH100\b", 989.4, 67),
    (r"\bA100\b", 312, 19.5),
    (r"\bA40\b", 149.7, 37.4),
    (r"\bA30\b", 165, 10.3),
    (r"\bA10G\b", 70, 35),
    (r"\bA10\b", 125, 31.2),
    (r"\bL40S\b", 362, 91.6),
    (r"\bL40\b", 181, 90.5),
    (r"\bL4\b", 121, 30.3),
    (r"\bV100-PCIE\b", None, 14),
    (r"\bV100\b", None, 15.7),
    (r"\bRTX 3090$", 71, 35.6),
    (r"\bRTX 4090$", 165.2, 82.6),
]


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The FLOP/s that a device's data sheet promises for dense matrix products, for MFU.

    Returns:
        None for a CPU, a GPU that is not known, a type that it has no units for, or float32 while torch may
        multiply it in fewer bits (`torch.set_float32_matmul_precision`).
    """
    rounds_float32 = torch.get_float32_matmul_precision() != "highest"
    if device.type != "cuda" or (dtype == torch.float32 and rounds_float32):
        return None
    return peak_flops_by_name(torch.cuda.get_device_name(device), dtype)


def training_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP/s that training probably reaches: 40% of the data sheet's, or of a product measured here.

    A CPU has no data sheet, so a product of 512 × 512 matrices is timed, which takes milliseconds.
    """
    if (peak := peak_flops(device, dtype)) is None:
        one = torch.ones(512, 512, device=device, dtype=dtype)
        best = math.inf
        for _ in range(4):  # the first is slower
            start = time.perf_counter()
            (one @ one)[0, 0].item()  # which waits for the device
            best = min(best, time.perf_counter() - start)
        peak = 2 * 512**3 / best
    return 0.4 * peak


def peak_flops_by_name(name: str, dtype: torch.dtype) -> float | None:
    """Peak FLOPs by the name of a GPU, such as `NVIDIA H100 80GB HBM3`; None for a slice of one."""
    if "MIG" in name:
        return None
    for pattern, bfloat16, float32 in _PEAK_TFLOPS:
        if re.search(pattern, name):
            tera = {torch.bfloat16: bfloat16, torch.float32: float32}.get(dtype)
            return None if tera is None else tera * 1e12
    return None
