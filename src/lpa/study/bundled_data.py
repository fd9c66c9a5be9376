"""The bundled corpus, prepared for a study or a demonstration."""

from pathlib import Path

from lpa.data.manifest import MANIFEST_FILE
from lpa.data.preparation.prepare import prepare
from lpa.data.sources.source import bundled_corpus
from lpa.errors import UserError
from lpa.study.design.grid_files import scale_vocab_size

_SMALL_SCALES = ("tiny", "femto", "pico", "nano")


def prepare_bundled_for_scale(out: Path, scale: str) -> Path:
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
        prepare_bundled(data, vocab_size)
    return data


def prepare_bundled(data: Path, vocab_size: int) -> None:
    """Prepares all splits of the bundled corpus in a new directory, with its own tokenizer."""
    prepare(
        [bundled_corpus("train")],
        data,
        vocab_size=vocab_size,
        validation=[bundled_corpus("validation")],
        test=[bundled_corpus("test")],
    )
