"""Texts of servers, models and agents as a terminal may show them, and the last line of a failure.

A control character could move the cursor, rename the window or write into the clipboard, so it is
shown as its escape.
"""

import re
import sys
import unicodedata
from typing import Final, NoReturn

from reattach.domain.errors import ReattachError

_KEPT: Final = frozenset("\n\t")
_UNSAFE: Final = frozenset({"Cc", "Cs"})
"""The categories of control characters, and of half surrogate pairs, which cannot be encoded."""

_PREFIX: Final = re.compile(r"\A(?:[A-Z]+(?:_[A-Z]+)*: )+")
"""Codes before the text of an error, which clients of the Letta API expect."""


def one_line(text: object) -> str:
    """Return a text with its line ends, tabs and control characters as escapes."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in str(text))


def printable(text: object) -> str:
    """Return a text with its control characters as escapes, except line feeds and tabs."""
    given = str(text)
    if given.isprintable():
        return given
    return "".join(
        repr(one)[1:-1] if one not in _KEPT and unicodedata.category(one) in _UNSAFE else one
        for one in given
    )


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, which is given in the singular: ``1 run``, ``2 entries``."""
    if count == 1:
        return f"{count} {noun}"
    return f"{count} {noun[:-1]}ies" if noun.endswith("y") else f"{count} {noun}s"


def fail(text: str) -> NoReturn:
    """Exit with one line on standard error and status 1."""
    sys.stderr.write(f"reattach: {printable(text)}\n")
    raise SystemExit(1)


def sentence_of(error: ReattachError) -> str:
    """Return the text of an error for a person: without the codes before it."""
    return _PREFIX.sub("", error.detail)
