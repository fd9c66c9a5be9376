"""The values that fields of a configuration accept."""

from typing import get_type_hints

from lpa.errors import UserError
from lpa.storage.records import parse_value

# What torch, NumPy and Python count with somewhere; no machine has room for more of anything counted here.
MAX = 2**31 - 1
MAX_PROCESSES = 1024
MIN_FLOAT32 = 2.0**-126


def require(condition: bool, name: str, value: object, accepted: str) -> None:
    if not condition:
        raise UserError(f"{name}: got {value}; expected {accepted}")


def check_types(section: str, config: object) -> None:
    """Refuse fields whose values are not of the declared types, such as those of a `Literal`."""
    for name, kind in get_type_hints(type(config)).items():
        parse_value(getattr(config, name), kind, field=f"{section}.{name.rstrip('_')}")


def check_integer(
    section: str, config: object, *names: str, minimum: int = 1, maximum: int = MAX
) -> None:
    """Refuse whole numbers out of bounds; null, where declared, stands for none."""
    for name in names:
        value, field = getattr(config, name), f"{section}.{name}"
        if value is None:
            continue
        require(value >= minimum, field, value, f"at least {minimum}")
        require(value <= maximum, field, value, f"at most {maximum:,}")


def check_positive(section: str, config: object, *names: str, maximum: float) -> None:
    """Refuse fields that are no numbers above 0 up to `maximum`; null, where declared, stands for none."""
    for name in names:
        value = getattr(config, name)
        require(
            value is None or 0 < value <= maximum,
            f"{section}.{name}",
            value,
            f"a positive number, at most {maximum:g}",
        )
