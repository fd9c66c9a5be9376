"""The types of the functions that long calls report their progress to."""

from collections.abc import Callable

# Called with what is being done, how much of it is done, and how much there is in all.
ProgressCallback = Callable[[str, int, int], None]

# The same where only one thing is done.
StepCallback = Callable[[int, int], None]
