"""Text of a user, such as a name or a path, as terminals, pages and figures may show it."""

import re

# Control characters but tab and line feed, those that turn the direction of what follows, and
# surrogates, which no encoding holds.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape_unprintable(text: str) -> str:
    """The text with each character that a terminal obeys, or no file can hold, as its escape."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
