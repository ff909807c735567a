"""The token that a client sends, and when a fresh one is needed."""

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final

from reattach.client.errors import LostError
from reattach.domain.clock import Clock
from reattach.domain.errors import ReattachError

Token = str | Mapping[str, Any]
"""A token, or the answer of ``POST /v1/tokens``: ``token`` and ``expires_at``."""

TokenSource = str | Callable[[bool], Token | Awaitable[Token]]
"""A token, or a function that returns one.

Its argument says whether the token must be fresh: the one before has expired, is about to, or was
refused.
"""

_RENEW_AT: Final = 0.8
"""The part of its life after which a token is renewed."""

_LEAST_LIFE_SECONDS: Final = 1.0
"""The least time from a new token to the next one."""


class Tokens:
    """The last token and its end. The drivers call its source, one call at a time."""

    def __init__(self, api_key: str | None, source: TokenSource | None, clock: Clock) -> None:
        if api_key is not None and source is not None:
            raise ReattachError("A client takes an API key or a token, not both.")
        fixed = source if isinstance(source, str) else api_key
        self.kept = None if fixed is None else checked(fixed)
        self.source = None if source is None or isinstance(source, str) else source
        self._clock = clock
        self._renew_at: float | None = None

    @property
    def renew_seconds(self) -> float | None:
        """The time until the token should be renewed; None: never."""
        if self._renew_at is None:
            return None
        return self._renew_at - self._clock.monotonic_seconds()

    @property
    def is_due(self) -> bool:
        seconds = self.renew_seconds
        return seconds is not None and seconds <= 0

    def must_ask(self, instead_of: str | None) -> bool:
        """Whether the source must be asked before a request is sent."""
        if self.source is None:
            return False
        return self.kept is None or self.kept == instead_of or self.is_due

    def take(self, answer: object) -> None:
        """Keep the answer of the source. Raises ValueError, TypeError or ReattachError."""
        expires_at = None
        token = answer
        if isinstance(answer, Mapping):
            token, expires_at = answer.get("token"), answer.get("expires_at")
        if not isinstance(token, str):
            raise TypeError(f"it returned {type(answer).__name__} without a token")
        renew_at = None
        if expires_at is not None:
            end = datetime.fromisoformat(str(expires_at))
            life = (end - self._clock.now()).total_seconds()
            # A new token that has expired shows that the clock is wrong; the server says when it
            # is due.
            if life > 0:
                seconds = max(life * _RENEW_AT, _LEAST_LIFE_SECONDS)
                renew_at = self._clock.monotonic_seconds() + seconds
        self.kept, self._renew_at = checked(token), renew_at

    def fail(self, instead_of: str | None, cause: str) -> None:
        """Note that the source failed. Raises LostError if there is no token to go on with."""
        self._renew_at = None
        if self.kept is None or self.kept == instead_of:
            raise LostError(f"the token function failed: {cause}")


def checked(token: str) -> str:
    """Return the key or token, or raise ReattachError, which does not show it."""
    if re.fullmatch(r"[!-~]+", token) is None:
        fault = "has a character that no key has, such as a space or a line end"
        raise ReattachError(
            f"The API key {fault if token else 'is empty'}.",
            remedy="Copy it again; `reattach keys create NAME` prints a new one.",
        )
    return token
