"""Sources as tests read them: whole, or refused."""

import pytest

from lpa.data import Source, read_documents
from lpa.errors import UserError


def read(path, **options):
    return list(read_documents([Source(str(path), **options)]))


def refusal(path, **options):
    """The message by which a file is refused: one line that names it."""
    with pytest.raises(UserError) as error:
        read(path, **options)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)
