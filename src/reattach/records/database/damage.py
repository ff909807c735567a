"""Stored values that cannot be read.

One value must not take a list, a conversation or the start of the server with it. So reading never
fails for a value: another one stands in for it, and the log says once which it was.
"""

import hashlib
from typing import Final

import structlog

from reattach.domain.messages import TextPart

logger = structlog.get_logger(__name__)

UNREADABLE: Final = (TextPart("(This message cannot be read: its stored form is damaged.)"),)
"""The parts that stand in for those of a message."""

_REMEMBERED: Final = 10_000
"""Damaged values that are remembered as logged already."""

_logged: Final[dict[str, None]] = {}


def note_value(column: str, value: object, error: Exception) -> None:
    """Log, once, that a value of ``column`` cannot be read.

    The text itself may be a tenant's, so the line has its digest: ``sha256`` of the stored text.
    """
    digest = hashlib.sha256(str(value).encode(errors="replace")).hexdigest()
    if _is_new(f"{column} {digest}"):
        reason = type(error).__name__
        logger.error("stored value is damaged", column=column, sha256=digest, reason=reason)


def note_row(table: str, row_id: object, reason: str) -> None:
    """Log, once, that a row is shown in part, or left out."""
    if _is_new(f"{table} {row_id}"):
        logger.error("stored row is damaged", table=table, id=str(row_id)[:100], reason=reason)


def _is_new(name: str) -> bool:
    if name in _logged:
        return False
    if len(_logged) >= _REMEMBERED:
        _logged.clear()
    _logged[name] = None
    return True
