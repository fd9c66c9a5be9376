"""The bundled corpus, prepared for a study that was given no data."""

from pathlib import Path

from lpa.data.manifest import MANIFEST_FILE
from lpa.data.preparation.prepare import prepare
from lpa.data.sources.source import bundled_corpus
from lpa.errors import UserError
from lpa.study.grid import scale_vocab_size

_SMALL_SCALES = ("tiny", "pico", "nano")


def prepare_bundled(out: Path, scale: str) -> Path:
    """Prepare it once, with the vocabulary of the scale, in a folder of `out`.

    Raises:
        UserError: a scale that it is too small for.
    """
    if scale not in _SMALL_SCALES:
        raise UserError(
            f"--data: got nothing; expected a prepared directory, as the bundled corpus is too small "
            f"for --scale {scale}"
        )
    vocab_size = scale_vocab_size(scale)
    data = out / f"data-{vocab_size}"
    if not (data / MANIFEST_FILE).exists():
        prepare(
            [bundled_corpus("train")],
            data,
            vocab_size=vocab_size,
            validation=[bundled_corpus("validation")],
            test=[bundled_corpus("test")],
        )
    return data
