"""`lpa prepare` beside the usual script and beside the tokenizer alone, in one run.

    .venv/bin/python benchmarks/data/prepare.py TEXT TOKENIZER [ROUNDS]

TEXT is a `.txt` or `.txt.gz` with one paragraph per line, TOKENIZER a directory with a fast tokenizer.
The three take turns; what is printed are medians of MB/s of text, ratios, and peak memory.

- usual: `datasets` reads the lines, `map(batched=True)` tokenizes them and `map` again concatenates and cuts
  them into blocks of 1024, as transformers' language-modeling examples do.
- tokenizer: `tokenizers.encode_batch` on lines that are already in memory, with all cores, nothing kept.
- lpa: `lpa prepare` from the file to a prepared data directory.
"""

import argparse
import gzip
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

CORES = len(os.sched_getaffinity(0))

USUAL = """
import sys
from itertools import chain
from datasets import load_dataset
from transformers import AutoTokenizer
text, name, cache = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
rows = load_dataset("text", data_files=text, split="train", cache_dir=cache)
rows = rows.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])
def group(batch, size=1024):
    whole = {key: list(chain(*batch[key])) for key in batch}
    length = len(whole["input_ids"]) // size * size
    blocks = {key: [value[i : i + size] for i in range(0, length, size)] for key, value in whole.items()}
    blocks["labels"] = blocks["input_ids"].copy()
    return blocks
rows.map(group, batched=True)
"""


def peak_memory(command: list[str]) -> tuple[float, int]:
    """Run a command; seconds, and the most bytes that it and its children held together."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(resident_bytes, process_tree(process.pid))))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return time.perf_counter() - start, peak


def process_tree(pid: int) -> list[int]:
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [
                member for child in path.read_text().split() for member in process_tree(int(child))
            ]
        except OSError:  # a thread that has ended
            continue
    return found


def resident_bytes(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")  # without shared pages


def tokenizer_alone(lines: list[str], tokenizer: str) -> float:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json"))
    start = time.perf_counter()
    for begin in range(0, len(lines), 10_000):
        backend.encode_batch(lines[begin : begin + 10_000])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text")
    parser.add_argument("tokenizer")
    parser.add_argument("rounds", type=int, nargs="?", default=3)
    options = parser.parse_args()
    text, tokenizer, rounds = options.text, options.tokenizer, options.rounds
    opener = gzip.open if text.endswith(".gz") else open
    with opener(text, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    megabytes = sum(len(line.encode()) + 1 for line in lines) / 1e6

    seconds: dict[str, list[float]] = {"usual": [], "tokenizer": [], "lpa": []}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            taken, peaks["usual"] = peak_memory(
                [sys.executable, "-c", USUAL, text, tokenizer, folder]
            )
            seconds["usual"].append(taken)
            seconds["tokenizer"].append(tokenizer_alone(lines, tokenizer))
            out = str(Path(folder) / "out")
            command = [sys.executable, "-m", "lpa", "prepare", text, "--tokenizer", tokenizer]
            taken, peaks["lpa"] = peak_memory([*command, "--out", out])
            seconds["lpa"].append(taken)
            shutil.rmtree(out)

    median = {name: statistics.median(values) for name, values in seconds.items()}
    versions = ", ".join(f"{name} {version(name)}" for name in ("lpa", "tokenizers", "datasets"))
    print(f"{megabytes:.1f} MB of text, {CORES} cores, {platform.machine()}, {versions}")
    for name, value in median.items():
        peak = f", peak {peaks[name] / 1e6:,.0f} MB" if name in peaks else ""
        print(f"{name:<10} {value:7.1f} s  {megabytes / value:6.2f} MB/s{peak}")
    print(f"lpa / usual      {median['usual'] / median['lpa']:.2f} times as fast")
    print(f"lpa / tokenizer  {median['tokenizer'] / median['lpa']:.2f} of its rate")


if __name__ == "__main__":
    main()
