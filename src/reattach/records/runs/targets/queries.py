"""The queries of a resume, built once because building them costs more than running them."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Select, bindparam

from reattach.records import lookup
from reattach.records.database import schema
from reattach.records.database.prepared import PreparedStatement

_runs, _otids = schema.runs, schema.run_otids
_OWNED: Final = lookup.owned(_runs, bindparam("tenant"))
_NEWEST: Final = _OWNED.order_by(_runs.c.ordinal.desc()).limit(1)
_ALL_BY_OTID: Final = _OWNED.join(_otids, _otids.c.run_id == _runs.c.id).where(
    _otids.c.tenant == bindparam("tenant"), _otids.c.otid == bindparam("otid")
)

RUN_BY_ID: Final = _OWNED.where(_runs.c.id == bindparam("run_id"))
RUN_BY_OTID: Final = _ALL_BY_OTID.order_by(_runs.c.ordinal.desc()).limit(1)
ACTIVE_RUN: Final = _NEWEST.where(_runs.c.thread_key == bindparam("thread_key"), schema.ACTIVE)

_SHORT: Final = (_runs.c.id, _runs.c.status, _runs.c.background)


def _prepare(
    rows: Select[Any],
    columns: Sequence[Any] = (_runs.c.id, _runs.c.tenant, *_SHORT[1:], _runs.c.traceparent),
) -> PreparedStatement:
    return PreparedStatement(rows.with_only_columns(*columns, maintain_column_froms=True))


TARGET_BY_ID: Final = _prepare(RUN_BY_ID)
TARGET_BY_OTID: Final = _prepare(RUN_BY_OTID)
ACTIVE_TARGET: Final = _prepare(ACTIVE_RUN)
SHORT_BY_ID: Final = _prepare(RUN_BY_ID, _SHORT)
SHORT_BY_OTID: Final = _prepare(_ALL_BY_OTID.limit(2), _SHORT)
"""Sorting takes half of the time, and an OTID hardly ever has a second run."""
CONVERSATION: Final = PreparedStatement(RUN_BY_ID.with_only_columns(_runs.c.conversation_id))
