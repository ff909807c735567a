"""Origins of web pages, as browsers send them."""

from typing import Final
from urllib.parse import urlsplit

ANY: Final = "*"
LOCAL: Final = "localhost"
"""Stands for the pages of this machine, on whatever port, in a list of origins."""

_PORTS: Final = {"http": 80, "https": 443}


def origin_of(text: str) -> str:
    """Return the origin as a browser writes it: small letters, no default port, no slash.

    Raises:
        ValueError: it is none. The text says which form is right.
    """
    word = text.strip()
    if word in {ANY, LOCAL}:
        return word
    try:
        parts = urlsplit(word)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    rest = (parts.path.rstrip("/"), parts.query, parts.fragment, parts.username)
    is_ascii = host.isascii() and not any(letter.isspace() or letter == "*" for letter in host)
    if not parts.scheme or not host or any(rest) or not is_ascii:
        raise ValueError(
            f"{text!r} is no origin of a web page. Write scheme, host and, if it is not the usual "
            "one, port: https://app.example.com or http://localhost:3000; 'localhost' alone stands "
            "for all pages of this machine, and * for all pages"
        )
    literal = f"[{host}]" if ":" in host else host
    shown = "" if port is None or port == _PORTS.get(parts.scheme) else f":{port}"
    return f"{parts.scheme}://{literal}{shown}"
