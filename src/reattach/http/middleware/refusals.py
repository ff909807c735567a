"""Audit log of requests with refused keys."""

import re
from typing import Final

import structlog
from starlette.types import Scope

from reattach.domain.clock import Clock
from reattach.domain.limits import AUDIT_LINES_PER_MINUTE
from reattach.domain.stream_tokens import is_stream_token

logger = structlog.get_logger("reattach.audit")

_OURS: Final = re.compile(r"rk_[A-Za-z0-9_-]{20,}")
_PREFIX_CHARACTERS: Final = 8
_MINUTE_SECONDS: Final = 60.0


class Audit:
    """Logs refused requests one by one, and a flood of them as one line per minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._window_ends = 0.0
        self._lines = 0
        self._suppressed = 0

    def refused(self, scope: Scope, secret: str) -> None:
        """Log a request that was refused with this secret, or with none."""
        now = self._clock.monotonic_seconds()
        if now >= self._window_ends:
            if self._suppressed:
                logger.warning("more keys refused", times=self._suppressed)
            self._window_ends = now + _MINUTE_SECONDS
            self._lines = self._suppressed = 0
        if self._lines >= AUDIT_LINES_PER_MINUTE:
            self._suppressed += 1
            return
        self._lines += 1
        client = scope.get("client")
        logger.warning(
            "key refused",
            peer=client[0] if client else None,
            key=_shown(secret),
            method=scope["method"],
            path=scope["path"][:100],
        )


def _shown(secret: str) -> str:
    """Return the prefix that `reattach keys list` shows, and nothing of other secrets."""
    if not secret:
        return "none"
    if is_stream_token(secret):
        return "a stream token"
    return f"{secret[:_PREFIX_CHARACTERS]}…" if _OURS.fullmatch(secret) else "not a Reattach key"
