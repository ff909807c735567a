"""Redaction of secrets in URLs and in texts from other programs."""

import os
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

MASK: Final = "***"

_SECRET_WORDS: Final = ("pass", "pwd", "secret", "token", "credential", "scram")
"""Words in the name or value of a URL option that may contain a secret."""


def is_local(scheme: str) -> bool:
    """Return whether only one process can use stores of this URL scheme: a file, or memory."""
    return scheme.lower().partition("+")[0] in {"sqlite", "memory"}


def redact_url(url: str) -> str:
    """Return the URL with its user, hosts, path and options, and ``***`` for everything secret.

    If it is unclear which part is the password, only the scheme is shown: an unescaped ``/``,
    ``?``, ``#`` or ``@`` in a password moves part of it into other components.
    """
    scheme, colon, _ = url.partition(":")
    try:
        return _redact_parts(urlsplit(url), url)
    except ValueError:
        return f"{scheme}:{MASK}" if colon and scheme.replace("+", "").isalnum() else MASK


def without_secrets(url: str) -> str:
    """Return the URL of a server with ``***`` for its user and password, and without its fragment.

    The fragment of an address of the page may have a token.
    """
    return _USER.sub(rf"\1{MASK}@", url).partition("#")[0]  # A password may have a "#".


_USER: Final = re.compile(r"\A((?:[a-zA-Z][a-zA-Z0-9+.-]*:)?//)?.*@", re.DOTALL)


def _redact_parts(parts: SplitResult, url: str) -> str:
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
        _ = urlsplit(f"//{host}").port  # ValueError if invalid: it may be part of a password.
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
    option = f"{key} {value}".lower()
    return MASK if any(word in option for word in _SECRET_WORDS) else quote(value, safe="/:,")


# Texts from other programs.

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
            r"\b(?:[srp]k|gsk|csk|xai|gh[opsu]|github_pat|glpat|hf|ya29|xox[abeprs]|pplx|nvapi|tgp|rt1)"
            r"[-_.][\w.*-]+"
        ),
        MASK,
    ),
    (re.compile(r"\b(?:org|proj|user|acct|sess)[-_](?=\w*\d)[\w-]{8,}"), MASK),
    (re.compile(r"\b(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{32,}"), MASK),
)
"""Patterns of secrets and their replacements. Model names and token counts do not match."""

_SECRET_VARIABLES: Final = ("_API_KEY", "_TOKEN", "_SECRET", "_SECRET_KEY", "_PASSWORD")
_SHORTEST_SECRET_CHARS: Final = 8
_MARGIN: Final = 8
"""Factor of ``max_chars`` that is searched, so that cutting the text never splits a secret
first."""


def redact_text(text: str, *, max_chars: int, secrets: Iterable[str] = ()) -> str:
    """Return ``text`` on one line, cut to ``max_chars``, with ``***`` for everything secret.

    Secret are ``secrets``, the values of environment variables that hold keys, and everything that
    looks like a key, a token, or the user part of a URL. HTML tags are removed.
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
