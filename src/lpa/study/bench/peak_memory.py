"""The peak memory of a model's first steps on a CPU, in its own process.

In one process a model takes the memory that an earlier one has freed, and so seems to need less.
`python -m lpa.study.bench.peak_memory TASK` prints the bytes; `TASK` and what is printed are JSON.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lpa.device import dtype_name, resolve_dtype
from lpa.errors import UserError
from lpa.model.configuration_lpa import LPAConfig
from lpa.study.bench.timing import PeakMemory
from lpa.study.bench.training_step import random_tokens, take_first_steps

# glibc returns freed memory of this many bytes at once to the system. Otherwise it adapts the number as a
# program runs, and what it keeps depends on where pieces happen to lie: a fifth of the peak at `nano`.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclass
class _Task:
    config: dict[str, Any]
    batch_size: int
    seq_len: int
    dtype: str
    compiled: bool
    threads: int


def cpu_peak_memory(
    config: LPAConfig, *, batch_size: int, seq_len: int, dtype: torch.dtype, compiled: bool
) -> int | None:
    """Bytes that the first steps of a model hold at most, above what their process held before.

    None where the system does not tell (see `PeakMemory`).

    Raises:
        UserError: the process failed, as where there is not enough memory.
    """
    task = _Task(
        config.to_diff_dict(),
        batch_size,
        seq_len,
        dtype_name(dtype),
        compiled,
        torch.get_num_threads(),
    )
    done = subprocess.run(
        [sys.executable, "-m", "lpa.study.bench.peak_memory", json.dumps(asdict(task))],
        env={**os.environ, **_ALLOCATOR},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no word"]
        raise UserError(
            f"peak memory: the process that measures it ended with exit code {done.returncode} ({said[-1]})"
        )
    found: int | None = json.loads(done.stdout)
    return found


def main() -> None:
    task = _Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    device, config = torch.device("cpu"), LPAConfig(**task.config)
    tokens = random_tokens(config, task.batch_size, task.seq_len, device)
    dtype = resolve_dtype(task.dtype, device.type)
    with PeakMemory(device) as peak:
        kept = take_first_steps(config, tokens, dtype, task.compiled)
    del kept
    print(json.dumps(peak.bytes))


if __name__ == "__main__":
    main()
