"""Stored values that cannot be read.

One damaged value must not break a list, a conversation or the start of the server. So a placeholder
replaces it, and the server's log reports it once.
"""

import hashlib
from typing import Final

import structlog

from reattach.domain.messages import TextPart

logger = structlog.get_logger(__name__)

UNREADABLE: Final = (TextPart("(This message cannot be read: its stored form is damaged.)"),)
"""The placeholder for the parts of a message."""

_REMEMBERED: Final = 10_000
"""The number of damaged values that are remembered as logged."""

_logged: Final[dict[str, None]] = {}


def note_value(column: str, value: object, error: Exception) -> None:
    """Log, once, that a value of ``column`` cannot be read.

    The value may be a tenant's, so the line contains only the SHA-256 of the stored text.
    """
    digest = hashlib.sha256(str(value).encode(errors="replace")).hexdigest()
    if _is_new(f"{column} {digest}"):
        reason = type(error).__name__
        logger.error("stored value is damaged", column=column, sha256=digest, reason=reason)


def note_row(table: str, row_id: object, reason: str) -> None:
    """Log, once, that a row is shown incompletely or left out."""
    if _is_new(f"{table} {row_id}"):
        logger.error("stored row is damaged", table=table, id=str(row_id)[:100], reason=reason)


def _is_new(name: str) -> bool:
    if name in _logged:
        return False
    if len(_logged) >= _REMEMBERED:
        _logged.clear()
    _logged[name] = None
    return True
