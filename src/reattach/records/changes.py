"""Changes of stored values, as functions from the value before to the value after."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any, TypeVar

from reattach.domain.clock import Clock
from reattach.records.base import Agent, Block, Conversation

_T = TypeVar("_T", Agent, Block, Conversation)


def changed_fields(before: _T, after: _T, fixed: Collection[str], clock: Clock) -> dict[str, Any]:
    """Return the fields of ``after`` that were replaced, and ``updated_at`` as now unless it was.

    Raises ValueError for a field that never changes.
    """
    values = {
        field.name: getattr(after, field.name)
        for field in fields(after)
        # By identity, because 1 == True, and they differ as JSON.
        if getattr(after, field.name) is not getattr(before, field.name)
    }
    if wrong := values.keys() & fixed:
        raise ValueError(f"These fields cannot be changed: {', '.join(sorted(wrong))}")
    return {"updated_at": clock.now()} | values
