"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake in what the user gave: a field, file or flag.

    The message is one line that names the culprit, its value and what is accepted. The command line
    prints it without a traceback and exits with code 2.
    """


class LPAWarning(UserWarning):
    """Something that works but is probably not what the user wants, such as a rank that saves nothing."""


def first_line(error: BaseException) -> str:
    """What is wrong in one line, of an error of a library; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
