"""The bundled corpus as the data of a study."""

import pytest

from lpa.data.manifest import Manifest
from lpa.errors import UserError
from lpa.study.bundled_data import prepare_bundled_for_scale


def test_scales_of_one_vocabulary_share_the_bundled_corpus_prepared_once(tmp_path):
    femto, pico, nano = (
        prepare_bundled_for_scale(tmp_path, scale) for scale in ("femto", "pico", "nano")
    )
    assert femto == pico == nano
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [femto.name]
    assert Manifest.load(femto).vocab_size == 4096


def test_a_scale_that_it_is_too_small_for_is_refused(tmp_path):
    with pytest.raises(UserError, match="the bundled corpus is too small for --scale micro"):
        prepare_bundled_for_scale(tmp_path, "micro")
    assert not list(tmp_path.iterdir())
