"""The numbers that fields of a configuration accept."""

from lpa.errors import UserError

# What torch, NumPy and Python count with somewhere; no machine has room for more of anything counted here.
MOST = 2**31 - 1
MOST_PROCESSES = 1024
LEAST_FLOAT32 = 2.0**-126


def require(condition: bool, name: str, value: object, accepted: str) -> None:
    if not condition:
        raise UserError(f"{name}: got {value}; expected {accepted}")


def check_integer(
    section: str, config: object, *names: str, least: int = 1, most: int = MOST
) -> None:
    """Refuse fields that are no whole numbers within bounds; null, where declared, stands for none."""
    for name in names:
        value, field = getattr(config, name), f"{section}.{name}"
        if value is None:
            continue
        require(
            isinstance(value, int) and not isinstance(value, bool), field, value, "a whole number"
        )
        require(value >= least, field, value, f"at least {least}")
        require(value <= most, field, value, f"at most {most:,}")


def check_positive(section: str, config: object, *names: str, most: float) -> None:
    """Refuse fields that are no numbers above 0 up to `most`; null, where declared, stands for none."""
    for name in names:
        value = getattr(config, name)
        require(
            value is None or 0 < value <= most,
            f"{section}.{name}",
            value,
            f"a positive number, at most {most:g}",
        )
