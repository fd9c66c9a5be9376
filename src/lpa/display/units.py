"""Numbers as people read them: bytes, counts, FLOPs and times in units, to three digits.

Tables and sentences use these; `--json` and files keep the numbers exact.
"""

import math
from collections.abc import Sequence

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SHORT_COUNT = 10_000  # below it a count is shown whole


def format_bytes(size: float) -> str:
    """Bytes as `812 B`, `96.5 KiB` or `1.50 GiB`."""
    return _in_units(size, 1024, _BINARY)


def format_count(count: float) -> str:
    """A count as `812`, `5,112`, `96.5K`, `4.72M` or `134M`."""
    if abs(count) < _SHORT_COUNT:
        return f"{count:,.0f}"
    return _in_units(count, 1000, ("", "K", "M", "B", "T", "Q")).replace(" ", "")


def format_flops(flops: float, unit: str = "FLOPs") -> str:
    """FLOPs as `28.3 MFLOPs`; with `unit="FLOP/s"` a rate, such as `280 TFLOP/s`."""
    return _in_units(
        flops, 1000, [f"{prefix}{unit}" for prefix in ("", "K", "M", "G", "T", "P", "E", "Z")]
    )


def format_seconds(seconds: float) -> str:
    """A measured time as `3.21 ms`, `12.3 s` or, from a minute on, as `format_duration` has it."""
    if not math.isfinite(seconds):
        return "–"
    if seconds >= 60:
        return format_duration(seconds)
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds * 1e6)} µs"


def format_duration(seconds: float) -> str:
    """Seconds as `8 s`, `3 min 20 s`, `5 h 04 min` or `2 d 03 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"


def format_mean(mean: float, std: float | None, digits: int) -> str:
    """A mean ± its standard deviation, or alone without one; a dash where it is no number."""
    if not math.isfinite(mean):
        return "–"
    shown = f"{mean:,.{digits}f}"
    return shown if std is None else f"{shown} ± {std:.{digits}f}"


def _in_units(value: float, step: int, units: Sequence[str]) -> str:
    """A value in the largest unit in which it is at least 1 to three digits."""
    number = 0
    while abs(value) >= (999.5 if number else step) and number < len(units) - 1:
        value /= step
        number += 1
    shown = f"{value:,.0f}" if number == 0 else _three_digits(value)
    return f"{shown} {units[number]}"


def _three_digits(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
