"""One run of a study, its files, and how it ended."""

from dataclasses import dataclass
from pathlib import Path

from lpa.errors import DIVERGED
from lpa.eval.perplexity import Evaluation
from lpa.storage.records import read_json
from lpa.storage.run_directory import RESULT_FILE, TEST_FILE

# Beside the log, as the next start removes a run that has no checkpoint.
FAILURE_SUFFIX = ".failure"


@dataclass(frozen=True)
class Job:
    """One run and its files.

    Attributes:
        run_id: jobs with the same are one run, see `run_id`.
        run: the run directory.
        recipe: its configuration, as `lpa train` reads it.
        log: what its process prints.

    Its process holds `lock` while it works on the run, whatever becomes of the study that started it.
    """

    variant: str
    seed: int
    run_id: str
    run: Path
    recipe: Path
    log: Path

    @property
    def lock(self) -> Path:
        return self.log.with_suffix(".lock")

    @property
    def test(self) -> Path:
        """Its `Evaluation` on held-out text."""
        return self.run / TEST_FILE

    @property
    def diverged(self) -> bool:
        """Whether its last start failed as loss or gradient were not finite. It then has ended: another start
        would repeat that, and docs/protocol.md allows none."""
        try:
            return is_divergence(self.failure.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return False

    @property
    def failure(self) -> Path:
        """What its last start failed with."""
        return self.log.with_suffix(FAILURE_SUFFIX)

    @property
    def finished(self) -> bool:
        return is_finished(self.run)


def is_finished(run: Path) -> bool:
    """Whether a run directory holds a trained model and its score."""
    return (run / RESULT_FILE).exists() and (run / TEST_FILE).exists()


def is_divergence(failure: str) -> bool:
    """Whether loss or gradient of a run were not finite, by what is recorded of its failure."""
    return DIVERGED in failure


def read_test(run: Path) -> Evaluation:
    """The score of a finished run on held-out text.

    Raises:
        UserError: its file is damaged.
    """
    return read_json(run / TEST_FILE, Evaluation)
