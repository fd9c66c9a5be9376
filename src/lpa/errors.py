"""The one exception that stands for a user's mistake, and what its messages have in common."""

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: a field, file or flag.

    The message is one line that names the culprit, its value and what is accepted. The command line
    prints it without a traceback and exits with code 2.
    """


# How the error of a training begins whose loss or gradient is not finite; a step's number follows.
DIVERGED = "training: step"


def expected_one_of(given: object, known: Iterable[object]) -> str:
    """The end of an error about a choice: all that is accepted, and what was probably meant."""
    names = [str(name) for name in known]
    return f"expected one of {', '.join(names)}{did_you_mean(given, names)}"


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """The end of an error: the nearest of the known words, or nothing where none is near."""
    near = closest_match(str(given), known)
    return f"; did you mean {near[0]}?" if near else ""


def closest_match(given: str, known: Iterable[str]) -> list[str]:
    """The known words that are spelled almost like what was given, the nearest first."""
    from difflib import get_close_matches

    return get_close_matches(given, list(known))


class LPAWarning(UserWarning):
    """Something that works but is probably not what the user wants, such as a rank that saves nothing."""


def first_line(error: BaseException) -> str:
    """What is wrong in one line, of an error of a library; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
