import pytest

from lpa.console import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (7.6, "8 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (18_240, "5 h 04 min"),
        (183_600, "2 d 03 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
