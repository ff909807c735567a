"""Text that every store, wire and client accepts.

That is Unicode without U+0000 or half surrogate pairs.
"""

from typing import Final

REPLACEMENT: Final = "\ufffd"
"""Replaces a character that cannot be stored."""


def is_storable(text: str) -> bool:
    """Whether ``text`` is encodable as UTF-8 and has no U+0000, which PostgreSQL refuses."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return "\0" not in text


def storable_text(text: str) -> str:
    """Join adjacent halves of surrogate pairs; replace lone ones and U+0000."""
    if is_storable(text):
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined.replace("\0", REPLACEMENT)


def ends_in_half(text: str) -> bool:
    """Whether the last character is the first half of a surrogate pair."""
    return "\ud800" <= text[-1:] <= "\udbff"
