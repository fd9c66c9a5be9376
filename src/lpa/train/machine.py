"""The machine underneath: which device, how much memory."""

import sys
from pathlib import Path

import torch

from lpa.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device by name; `auto` is a GPU where there is one, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device: got {name!r}; not available here, expected auto or cpu"
        ) from error
    return device


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
