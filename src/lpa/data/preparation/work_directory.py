"""The unfinished work of a preparation, kept beside the output for the next process."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from lpa.data.preparation.encode_jobs import finished_jobs
from lpa.data.preparation.prepare_config import PrepareConfig, TokenizerChoice
from lpa.errors import UserError
from lpa.storage.files import write_text_atomic
from lpa.storage.locks import lock_directory
from lpa.storage.outputs import (
    content_of,
    recover_replaced,
    resolve_output,
    staging_directory,
)

# The output while it is put together, in the folder of unfinished work.
RESULT_DIRECTORY = "result"


def recover_output(out: Path) -> None:
    """Make prepared data whole whose process was killed while it replaced them."""
    target = resolve_output(out)
    partial = staging_directory(target, "partial")
    if partial.is_dir():
        with lock_directory(partial, output=out):
            recover_replaced(partial / RESULT_DIRECTORY, target)


@contextmanager
def work_directory(out: Path, config: PrepareConfig, choice: TokenizerChoice) -> Iterator[Path]:
    """The folder of unfinished work: that of an earlier process, or an empty one.

    It is removed when the work is complete or the input is bad; it stays when the process is stopped, or has
    finished jobs before it meets bad input. Of another preparation only jobs are kept: each says what it
    is of.
    """
    partial = staging_directory(resolve_output(out), "partial")
    identity = {"preparation": config.describe(paths=True), **asdict(choice)}
    with lock_directory(partial, output=out):
        plan = partial / "plan.json"
        text = json.dumps(identity, indent=2)
        if not plan.is_file() or plan.read_bytes() != text.encode():
            for path in content_of(partial):
                if path.name != "jobs":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            (partial / "jobs").mkdir(exist_ok=True)
            write_text_atomic(plan, text)
        try:
            yield partial
            shutil.rmtree(partial)
        except _UnfinishedError:
            raise
        except UserError:
            shutil.rmtree(partial)
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise UserError(
                    f"--out {out}: {error.strerror}; what is finished is kept in {partial}, so free some "
                    "space and give the same command again"
                ) from error
            raise


class _UnfinishedError(UserError):
    """Bad input that was met when jobs were finished, which are kept."""


@contextmanager
def keep_finished_jobs(partial: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if finished := finished_jobs(partial / "jobs"):
            raise _UnfinishedError(
                f"{error}; the {finished:,} jobs that are finished are kept in {partial}: correct this and "
                "give the same command again, or remove that directory"
            ) from error
        raise
