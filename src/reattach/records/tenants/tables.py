"""How each table belongs to tenants. A test fails for a table that is missing here."""

from collections.abc import Iterator, Mapping
from typing import Final

from sqlalchemy import Column, ColumnElement, Table, select

from reattach.domain.ids import TenantId
from reattach.records.database import schema

DELETED: Final[tuple[Table, ...]] = (
    schema.runs,
    schema.messages,
    schema.conversation_keys,
    schema.conversations,
    schema.blocks,
    schema.agents,
    schema.steps,
    schema.request_keys,
    schema.run_otids,
    schema.stream_tokens,
    schema.callback_secrets,
    schema.api_keys,
    schema.audit_log,
)
"""The tables with a tenant, in the order in which they are deleted.

A parent comes after its children where it may have many of them, so that no deletion cascades far.
"""

DELETED_WITH_PARENTS: Final[tuple[Table, ...]] = (
    schema.agent_tags,
    schema.agent_blocks,
    schema.conversation_blocks,
    schema.thread_messages,
    schema.hidden_events,
    schema.run_timelines,
    schema.cut_offs,
)
"""The tables whose rows belong to a tenant through a parent, which deletes them with it."""

OF_THE_SERVER: Final[tuple[Table, ...]] = (
    schema.owners,
    schema.signing_keys,
    schema.abandoned_logs,
    schema.clock_notes,
)
"""The tables without rows of tenants. Abandoned logs have ids of runs until they are deleted."""


def parents_of(table: Table) -> Iterator[tuple[Column[object], Table]]:
    """Yield the columns of the table that name a row of another table, with that table."""
    for column in table.columns:
        for key in column.foreign_keys:
            yield column, key.column.table


def is_of(table: Table, tenant: TenantId) -> ColumnElement[bool]:
    """Return the condition that a row belongs to the tenant."""
    if "tenant" in table.c:
        return table.c.tenant == tenant
    column, parent = next(parents_of(table))
    return column.in_(select(parent.c.id).where(parent.c.tenant == tenant))


EXPORTED: Final[Mapping[Table, str]] = {
    schema.api_keys: "key",
    schema.blocks: "block",
    schema.agents: "agent",
    schema.conversations: "conversation",
    schema.runs: "run",
    schema.messages: "message",
    schema.stream_tokens: "stream_token",
    schema.audit_log: "audit_entry",
}
"""The tables that are exported one after the other, with the type of their lines.

Runs come before messages and events, so that a run that is exported as ended has all of them.
"""

EXPORTED_WITH_PARENTS: Final[Mapping[Table, tuple[str, Table]]] = {
    schema.agent_tags: ("agent_tag", schema.agents),
    schema.agent_blocks: ("agent_block", schema.agents),
    schema.conversation_blocks: ("conversation_block", schema.conversations),
    schema.conversation_keys: ("conversation_key", schema.conversations),
    schema.steps: ("step", schema.runs),
    schema.run_otids: ("run_otid", schema.runs),
    schema.run_timelines: ("run_timeline", schema.runs),
    schema.cut_offs: ("cut_off", schema.runs),
    schema.thread_messages: ("thread_message", schema.messages),
}
"""The tables whose rows follow those of their parents, with the type of their lines."""

NOT_EXPORTED: Final[Mapping[Table, str]] = {
    schema.callback_secrets: "secrets",
    schema.request_keys: "digests of requests, by which the server recognises repeated ones",
    schema.hidden_events: "events of active runs that no client has seen",
}
"""The tables of tenants that are not exported, each with the reason."""

NOT_IN_EXPORTS: Final = frozenset(
    {
        "ordinal",
        "tenant",
        "secret_sha256",
        # How a run is driven, which says nothing about its content.
        "begun_calls",
        "callback_due_at",
        "callback_host",
        "callback_tries",
        "first_owner",
        "input_text",
        "interrupted_at",
        "notes",
        "owner",
        "token",
        "turn_plan",
    }
)
"""Columns that are not exported. The order of the lines is that of ``ordinal``."""
