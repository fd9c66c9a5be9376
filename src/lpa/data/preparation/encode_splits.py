"""All text of a preparation as encoded jobs, here or in processes."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

from lpa.callbacks import ProgressCallback
from lpa.data.manifest import SPLITS
from lpa.data.preparation.chunking import Chunker
from lpa.data.preparation.encode_jobs import (
    Encoding,
    JobEncoder,
    encode_in_worker,
    group_chunks,
    init_worker,
    load_job_stats,
)
from lpa.data.preparation.prepare_config import AllLeftOut, PrepareConfig
from lpa.data.preparation.splitting import SourceScan, SplitAssigner, SplitChunk
from lpa.errors import UserError

SINGLE_PROCESS_BYTES = 2**22  # below this, starting processes takes longer than the work

# Split -> the numbers of its jobs, in order.
Finished = dict[str, list[int]]


def _chunks(
    config: PrepareConfig,
    scan: SourceScan,
    chunker: Chunker,
    on_bytes: Callable[[int], None],
    left_out: AllLeftOut,
) -> Iterator[SplitChunk]:
    """The text of all splits, in an order that is always the same."""
    training = SplitAssigner(config.sources_by_split["train"], config.fractions, scan)
    yield from training.chunks(chunker, on_bytes, left_out["train"])
    for split in ("validation", "test"):
        none = {"validation": 0.0, "test": 0.0}
        # Held-out text is scored once, whatever its weight.
        once = [
            replace(listed, source=replace(listed.source, weight=1.0))
            for listed in config.sources_by_split[split]
        ]
        held_out = SplitAssigner(once, none, SourceScan())
        for chunk in held_out.chunks(chunker, on_bytes, left_out[split]):
            yield chunk._replace(split=split)


def encode_all(
    partial: Path,
    config: PrepareConfig,
    scan: SourceScan,
    encoding: Encoding,
    on_progress: ProgressCallback,
) -> tuple[Finished, AllLeftOut]:
    """Encode all jobs that are not finished; returns the numbers of all, and what is left out."""
    total, done = config.size(), 0
    repeated = any(listed.source.weight > 1 for listed in config.sources_by_split["train"])
    left_out = config.left_out()

    def on_bytes(size: int) -> None:
        nonlocal done
        done += size
        on_progress("encoding", done, 0 if repeated else total)

    folder = partial / "jobs"
    chunks = _chunks(config, scan, Chunker(encoding.text_encoder()), on_bytes, left_out)
    finished: Finished = {split: [] for split in SPLITS}

    def unfinished_items() -> Iterator[EncodeItem]:
        for number, chunk_group in enumerate(group_chunks(chunks)):
            for split, split_chunks in _group_by_split(chunk_group):
                finished[split].append(number)
                job = load_job_stats(folder, split, number)
                if job is None or job.digest != encoding.digest(split_chunks):
                    yield number, split, split_chunks

    arguments = (encoding, folder)
    # How much there is of a dataset on the hub is not known.
    is_small = total < SINGLE_PROCESS_BYTES and not config.reads_hub()
    if is_small or config.workers == 1:
        encoder_here = JobEncoder(*arguments)
        for item in unfinished_items():
            encoder_here.encode(*item)
    else:
        _encode_in_processes(unfinished_items(), config.workers, arguments)
    return finished, left_out


# The number of a job, one of its splits, and the chunks of that split.
EncodeItem = tuple[int, str, list[SplitChunk]]


def _encode_in_processes(
    items: Iterator[EncodeItem], workers: int, arguments: tuple[Any, ...]
) -> None:
    """Encode jobs in processes, a few more at a time than there are, so that memory stays bounded."""
    with ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),  # threads of this process make forking unsafe
        initializer=init_worker,
        initargs=arguments,
    ) as pool:
        running: set[Future] = set()
        try:
            for item in items:
                with _main_module_hidden():
                    running.add(pool.submit(encode_in_worker, *item))
                if len(running) >= workers + 2:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            for future in running:
                future.result()
        except BrokenProcessPool as error:
            raise UserError(
                f"--workers {workers}: a process ended before its job was finished; where the system killed "
                "it for its memory, give fewer"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Start processes that do not run the script of this one, which they would if they knew of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _group_by_split(chunk_group: list[SplitChunk]) -> list[tuple[str, list[SplitChunk]]]:
    chunks = {split: [chunk for chunk in chunk_group if chunk.split == split] for split in SPLITS}
    return [(split, split_chunks) for split, split_chunks in chunks.items() if split_chunks]
