import pytest


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, prepared):
    return prepared / "tokenizer"
