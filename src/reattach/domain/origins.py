"""Origins of web pages, as browsers send them."""

import re
from typing import Final
from urllib.parse import urlsplit

ANY: Final = "*"
LOCAL: Final = "localhost"
"""In a list of origins, all pages of this machine on any port."""

_HOST: Final = re.compile(r"[0-9a-f:.]*:[0-9a-f:.]*|[a-z0-9_-]+(\.[a-z0-9_-]+)*")
"""An IPv6 address, or the labels of a name in lower case."""

_PORTS: Final = {"http": 80, "https": 443}


def origin_of(text: str) -> str:
    """Return the origin as a browser writes it: lower case, no default port, no slash.

    Raises:
        ValueError: It is not an origin. The text shows the right form.
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
    if not parts.scheme or _HOST.fullmatch(host) is None or any(rest):
        raise ValueError(
            f"{text!r} is not an origin of a web page. Write scheme, host and, if not the usual "
            "one, port: https://app.example.com or http://localhost:3000; 'localhost' alone stands "
            "for all pages of this machine, and * for all pages"
        )
    literal = f"[{host}]" if ":" in host else host
    shown = "" if port is None or port == _PORTS.get(parts.scheme) else f":{port}"
    return f"{parts.scheme}://{literal}{shown}"
