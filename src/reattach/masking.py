"""URLs of stores as they may be shown: where it is and who asks, and no secret."""

from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

MASK: Final = "***"

_TELLTALE: Final = ("pass", "pwd", "secret", "token", "credential", "scram")
"""What the name or value of an option mentions if it may hold a secret."""


def is_local(scheme: str) -> bool:
    """Whether it is the scheme of stores that only one process can use: a file, or its memory."""
    return scheme.lower().partition("+")[0] in {"sqlite", "memory"}


def masked(url: str) -> str:
    """The URL with its user, hosts, path and options, and ``***`` for everything secret.

    Where it is not sure which part is the password, only the scheme is shown: a password with
    ``/``, ``?``, ``#`` or ``@`` in it that was not escaped ends up in other parts.
    """
    scheme, colon, _ = url.partition(":")
    try:
        return _shown(urlsplit(url), url)
    except ValueError:
        return f"{scheme}:{MASK}" if colon and scheme.replace("+", "").isalnum() else MASK


def _shown(parts: SplitResult, url: str) -> str:
    if not parts.scheme:
        raise ValueError("no scheme")
    start = f"{parts.scheme}://"
    if not url.lower().startswith(start):
        if not is_local(parts.scheme):
            raise ValueError("no place")
        start = f"{parts.scheme}:"
    if parts.fragment or "#" in url or "@" in parts.path + parts.query:
        raise ValueError("ambiguous")
    user, at, hosts = parts.netloc.rpartition("@")
    if "@" in user:
        raise ValueError("ambiguous")
    for host in hosts.split(","):
        _ = urlsplit(f"//{host}").port  # ValueError if it is none: it may be a password.
    name, colon, _ = user.partition(":")
    options = "&".join(
        f"{quote(key)}={_value(key, value)}"
        for key, value in parse_qsl(
            parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)
        )
    )
    shown = f"{start}{name}{f':{MASK}' if colon else ''}{at}{hosts}{parts.path}"
    return f"{shown}?{options}" if options else shown


def _value(key: str, value: str) -> str:
    said = f"{key} {value}".lower()
    return MASK if any(word in said for word in _TELLTALE) else quote(value, safe="/:,")
