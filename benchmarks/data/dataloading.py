"""Random access to samples of ten billion tokens, beside the rate at which a nano model trains.

    .venv/bin/python benchmarks/data/dataloading.py [TOKENS_PER_SECOND_OF_TRAINING]

The tokens lie in a sparse file, which takes no room on the disk.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from lpa.data.dataset import TokenDataset
from lpa.data.manifest import Manifest, Shard, Split

TOKENS = 10**10
SEQ_LEN = 1024


def resident_bytes() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in x)
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokens_per_second_of_training", type=float, nargs="?", default=8000.0)
    training = parser.parse_args().tokens_per_second_of_training
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.lib.format.open_memmap(
            folder / "train-00000.npy", mode="w+", dtype="uint16", shape=(TOKENS,)
        )
        split = Split([Shard("train-00000.npy", TOKENS, "")], TOKENS, 1, TOKENS, TOKENS)
        Manifest("", 50_000, "uint16", 0, {"train": split}, {}).save(folder)

        before = resident_bytes()
        data = TokenDataset(folder, "train", seq_len=SEQ_LEN, seed=0)
        random.seed(0)
        indices = [random.randrange(10 * len(data)) for _ in range(20_000)]
        start = time.perf_counter()
        for index in indices:
            data[index]
        rate = len(indices) * SEQ_LEN / (time.perf_counter() - start)
        more = resident_bytes() - before
    print(f"{TOKENS:,} tokens, samples of {SEQ_LEN}: {rate:,.0f} tokens/s read at random")
    print(f"{rate / training:,.0f} times the {training:,.0f} tokens/s of training")
    print(f"{more / 1e6:.1f} MB more resident than before opening")


if __name__ == "__main__":
    main()
