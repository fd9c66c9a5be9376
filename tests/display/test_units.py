import pytest

from lpa.display.units import (
    format_bytes,
    format_count,
    format_duration,
    format_flops,
    format_mean,
    format_seconds,
)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (format_bytes, 0, "0 B"),
        (format_bytes, 1023, "1,023 B"),
        (format_bytes, 1024, "1.00 KiB"),
        (format_bytes, 1023.7 * 1024, "1.00 MiB"),
        (format_bytes, 1.5 * 2**30, "1.50 GiB"),
        (format_bytes, 640 * 2**40, "640 TiB"),
        (format_count, 0, "0"),
        (format_count, 9_999, "9,999"),
        (format_count, 10_000, "10.0K"),
        (format_count, 999_600, "1.00M"),
        (format_count, 4_721_408, "4.72M"),
        (format_count, 134_137_856, "134M"),
        (format_count, 3.2e9, "3.20B"),
        (format_flops, 28_311_552, "28.3 MFLOPs"),
        (format_flops, 4.2e21, "4.20 ZFLOPs"),
        (format_seconds, 0.00321, "3.21 ms"),
        (format_seconds, 4.2e-5, "42.0 µs"),
        (format_seconds, 12.34, "12.3 s"),
        (format_seconds, 200, "3 min 20 s"),
        (format_seconds, float("inf"), "–"),
        (format_duration, 7.6, "8 s"),
        (format_duration, 59.7, "1 min 00 s"),
        (format_duration, 200, "3 min 20 s"),
        (format_duration, 18_240, "5 h 04 min"),
        (format_duration, 183_600, "2 d 03 h"),
    ],
)
def test_units(function, value, text):
    assert function(value) == text


def test_a_rate_and_a_mean():
    assert format_flops(2.8e14, "FLOP/s") == "280 TFLOP/s"
    assert format_mean(1.5, 0.707, 1) == "1.5 ± 0.7"
    assert format_mean(1234.5, None, 2) == "1,234.50"
    assert format_mean(float("nan"), float("nan"), 1) == "–"
