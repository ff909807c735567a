"""The name of the program that sent a request, for those who look at readers."""

import re
from functools import lru_cache
from typing import Final

from starlette.types import Scope

MAX_CLIENT_CHARS: Final = 60
_READ_BYTES: Final = 400
"""Bytes of the header that are looked at. The rest must not stay in the cache."""

_BROWSERS: Final = (
    ("Edg", "Edge"),
    ("OPR", "Opera"),
    ("Firefox", "Firefox"),
    ("HeadlessChrome", "Chrome"),
    ("Chrome", "Chrome"),
    ("CriOS", "Chrome"),
    ("FxiOS", "Firefox"),
    ("Safari", "Safari"),
)
"""Tokens of the browsers' ``User-Agent`` and their names; the first one that occurs counts."""


def client_of(scope: Scope) -> str:
    """Return the program's name and version, such as ``letta-client/1.12.1`` or ``Firefox 140``.

    It is what the client says of itself in ``User-Agent``, at most MAX_CLIENT_CHARS of printable
    ASCII; empty if it says nothing.
    """
    for name, value in scope["headers"]:
        if name == b"user-agent":
            return _name_of(value[:_READ_BYTES])
    return ""


@lru_cache(maxsize=512)
def _name_of(user_agent: bytes) -> str:
    """Return the name in a ``User-Agent``. Cached, so that thousands of readers share one text."""
    text = user_agent.decode("ascii", "replace")
    text = "".join(char for char in text if char.isascii() and char.isprintable())
    if text.startswith("Mozilla/"):
        for token, browser in _BROWSERS:
            if found := re.search(rf"\b{token}/(\d+)", text):
                return f"{browser} {found[1]}"
    return text.partition(" ")[0][:MAX_CLIENT_CHARS]
