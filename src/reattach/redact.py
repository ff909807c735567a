"""URLs of stores, and words of others, as they may be shown: without secrets."""

import os
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

MASK: Final = "***"

_TELLTALE: Final = ("pass", "pwd", "secret", "token", "credential", "scram")
"""What the name or value of an option mentions if it may hold a secret."""


def is_local(scheme: str) -> bool:
    """Whether it is the scheme of stores that only one process can use: a file, or its memory."""
    return scheme.lower().partition("+")[0] in {"sqlite", "memory"}


def redact_url(url: str) -> str:
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


# Words of others.

_NAMED: Final = r"api[-_]?key|token(?!s)|secret|passw(?:or)?d|pwd|authorization|credential"
_SECRETS: Final = (
    (re.compile(r"://[^\s/@]+@"), f"://{MASK}@"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1 {MASK}"),
    (
        re.compile(
            rf"([\w-]*(?:{_NAMED})[\w-]*[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;)}}]+", re.IGNORECASE
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w.-]+"), MASK),
    (re.compile(r"\b(?:AIza[\w-]{20,}|AKIA[A-Z0-9]{12,})"), MASK),
    (
        re.compile(
            r"\b(?:[srp]k|gsk|csk|xai|gh[opsu]|github_pat|glpat|hf|ya29|xox[abeprs]|pplx|nvapi|tgp)"
            r"[-_.][\w.*-]+"
        ),
        MASK,
    ),
    (re.compile(r"\b(?:org|proj|user|acct|sess)[-_](?=\w*\d)[\w-]{8,}"), MASK),
    (re.compile(r"\b(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{32,}"), MASK),
)
"""Each form of a secret, and its stand-in. Model names and counts of tokens pass."""

_SECRET_VARIABLES: Final = ("_API_KEY", "_TOKEN", "_SECRET", "_SECRET_KEY", "_PASSWORD")
_SHORTEST_SECRET_CHARS: Final = 8
_MARGIN: Final = 8
"""How many times what is shown is looked at, so that no secret is cut in two before."""


def redact_text(text: str, *, max_chars: int, secrets: Iterable[str] = ()) -> str:
    """Return ``text`` on one line, cut to ``max_chars``, with ``***`` for everything secret.

    Secret are ``secrets``, what the environment has of keys, and everything that looks like a key,
    a token or the user of a URL. Tags of HTML are left out.
    """
    text = text[: max_chars * _MARGIN]
    known = {value for name, value in os.environ.items() if name.endswith(_SECRET_VARIABLES)}
    for secret in sorted({*known, *secrets}, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET_CHARS:
            text = text.replace(secret, MASK)
    text = re.sub(r"<[a-zA-Z/!][^>]*>", " ", text)
    for pattern, mask in _SECRETS:
        text = pattern.sub(mask, text)
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[
        :max_chars
    ]
