"""Partial updates: some fields of a row by name."""

from collections.abc import Collection, Mapping
from typing import Any

from reattach.domain.clock import Clock


def check_changes(
    changes: Mapping[str, Any], fields: Collection[str], fixed: Collection[str], clock: Clock
) -> dict[str, Any]:
    """Return the changes, with ``updated_at`` as now unless they set it.

    Raises ValueError for a name that is no field, or one of a field that never changes.
    """
    wrong = [name for name in changes if name not in fields or name in fixed]
    if wrong:
        raise ValueError(f"These are not fields that can be changed: {', '.join(wrong)}")
    return {"updated_at": clock.now()} | dict(changes)
