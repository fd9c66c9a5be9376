"""What tests of GGUF files share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def merged(run, tmp_path_factory) -> Path:
    """A trained model as a stock Llama."""
    from lpa.convert.merge import merge_directory

    out = tmp_path_factory.mktemp("merged") / "llama"
    merge_directory(run / "final", out)
    return out


@pytest.fixture(scope="module")
def exported(merged, tmp_path_factory) -> Path:
    """It as a GGUF file of float32."""
    from lpa.convert.gguf.gguf_export import export_gguf

    out = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export_gguf(merged, out, dtype="float32")
    return out
