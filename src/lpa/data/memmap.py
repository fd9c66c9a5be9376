"""Arrays on disk, which may be damaged."""

from pathlib import Path

import numpy as np


def open_memmap(path: Path) -> np.memmap | None:
    """A `.npy` file mapped into memory for reading; None where it is not a whole one."""
    if not path.is_file():
        return None
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    # NumPy parses the header as a Python literal and believes its sizes: there is no end to what it raises.
    except Exception:
        return None
    return array if isinstance(array, np.memmap) else None
