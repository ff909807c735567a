"""Runs as clients see them, without their input and plan, which may be large."""

import builtins
from datetime import datetime
from typing import Final

import msgspec

from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import AgentId, ConversationId, RunId, TenantId
from reattach.records import lookup
from reattach.records.base import Attempt, Page, RequestConfig, Run, RunError
from reattach.records.database import schema
from reattach.records.database.prepared import PreparedStatement
from reattach.records.repository import Repository
from reattach.records.runs.lists.pages import RunFilters, RunPages


class RunSummary(msgspec.Struct, frozen=True):
    """The members of a ``Run`` that its clients see."""

    id: RunId
    agent_id: AgentId
    conversation_id: ConversationId | None
    status: RunStatus
    stop_reason: StopReason | None
    background: bool
    created_at: datetime
    completed_at: datetime | None
    run_type: str
    error: RunError | None
    attempts: tuple[Attempt, ...]
    request_config: RequestConfig
    callback_url: str | None
    callback_sent_at: datetime | None
    callback_status_code: int | None
    callback_error: str | None
    first_event_at: datetime | None
    duration_ns: int | None

    @classmethod
    def of(cls, run: Run) -> "RunSummary":
        members = {name: getattr(run, name) for name in cls.__struct_fields__ if name != "agent_id"}
        return cls(agent_id=run.thread.agent_id, **members)


_COLUMNS: Final = [schema.runs.c[name] for name in RunSummary.__struct_fields__]
_PAGES: Final = RunPages(*_COLUMNS)
_BY_ID: Final = PreparedStatement(lookup.by_id(schema.runs).with_only_columns(*_COLUMNS))


class RunSummaries(Repository):
    """The runs of each tenant, as its clients see them."""

    async def get(self, tenant: TenantId, run_id: RunId) -> RunSummary:
        found = await self._database.run_prepared(_BY_ID, tenant=tenant, row_id=run_id)
        for row in found:
            return RunSummary(*row)
        raise lookup.not_found(schema.runs, run_id)

    async def list(
        self, tenant: TenantId, page: Page, filters: RunFilters
    ) -> builtins.list[RunSummary]:
        """List runs by their creation."""
        rows = await self._database.in_read(_PAGES.read, tenant, page, filters)
        return [RunSummary(*row) for row in rows]
