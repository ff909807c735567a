"""The tables of the records.

They share their database with the event log, whose tables begin with ``log_``. Every table that
clients query by id has a tenant column, and ``lookup`` filters by it.
"""

from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    text,
)

from reattach.domain.events import RunStatus, StopReason, Usage
from reattach.domain.messages import ContentPart, Message, Role
from reattach.records.base import (
    DEFAULT_AGENT_TYPE,
    AgentType,
    Attempt,
    RequestConfig,
    RequestExtras,
    RunError,
    RunNotes,
)
from reattach.records.database.columns import (
    Characters,
    JsonObject,
    LongText,
    Moment,
    OneOf,
    Ordinal,
    Position,
    StoredType,
    Typed,
    Whole,
    Word,
    partial_index,
)
from reattach.records.database.damage import UNREADABLE

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

ACTIVE = text("status IN ('created', 'running')")
"""The runs that have not ended. It is a literal because partial indexes use it."""

LOG_KEPT = text("log_deleted_at IS NULL")

CALLBACK_DUE = text("callback_due_at IS NOT NULL")

UNSUCCESSFUL = text("status IN ('failed', 'cancelled')")

REVOKED = text("revoked_at IS NOT NULL")


def _listed(name: str, *parts: Column[Any] | Index) -> Table:
    """Return a table whose rows clients query by id, each the row of a tenant."""
    return Table(
        name,
        metadata,
        Column("ordinal", Ordinal, primary_key=True),
        Column("id", Characters(), nullable=False, unique=True),
        Column("tenant", Characters(), nullable=False),
        *parts,
    )


agents = _listed(
    "agents",
    Column("name", Characters(), nullable=False),
    Column("system", LongText(), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("agent_type", OneOf(AgentType, DEFAULT_AGENT_TYPE), nullable=False),
    Column("description", LongText()),
    Column("model", Characters()),
    Column("model_settings", JsonObject),
    Column("embedding", Characters()),
    Column("context_window_limit", Whole),
    Column("timezone", Characters()),
    Column("hidden", Boolean),
    Column("metadata", JsonObject),
    Column("settings", JsonObject(required=True), nullable=False),
    Column("last_run_completion", Moment),
    Column("last_run_duration_ms", Whole),
    Column("last_stop_reason", Word(StopReason, StopReason.ERROR)),
    Index("ix_agents_tenant_created_at", "tenant", "created_at", "ordinal"),
)

agent_tags = Table(
    "agent_tags",
    metadata,
    Column("agent_id", ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Position(0), primary_key=True),
    Column("tag", Characters(), nullable=False),
    Index("ix_agent_tags_tag", "tag", "agent_id"),
)

blocks = _listed(
    "blocks",
    Column("label", Characters()),
    Column("value", LongText(), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("description", LongText()),
    Column("limit", Whole),
    Column("read_only", Boolean, nullable=False),
    Column("hidden", Boolean),
    Column("metadata", JsonObject(required=True), nullable=False),
    Column("tags", Typed(tuple[str, ...], ()), nullable=False),
    Index("ix_blocks_tenant_created_at", "tenant", "created_at", "ordinal"),
)

agent_blocks = Table(
    "agent_blocks",
    metadata,
    Column("agent_id", ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    Column("block_id", ForeignKey("blocks.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Position(0), nullable=False),
    Index("ix_agent_blocks_block_id", "block_id"),
)

conversations = _listed(
    "conversations",
    Column("agent_id", ForeignKey("agents.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("summary", LongText()),
    Column("description", LongText()),
    Column("model", Characters()),
    Column("model_settings", JsonObject),
    Column("context_window_limit", Whole),
    Column("hidden", Boolean),
    Column("archived_at", Moment),
    Column("last_message_at", Moment),
    Column("last_run_completion", Moment),
    Column("deleted_at", Moment),
    Index("ix_conversations_tenant_created_at", "tenant", "created_at", "ordinal"),
    Index("ix_conversations_agent_id_created_at", "agent_id", "created_at", "ordinal"),
)

conversation_keys = Table(
    "conversation_keys",
    metadata,
    Column("tenant", Characters(), primary_key=True),
    Column("agent_id", ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    Column("dialect", Characters(), primary_key=True),
    Column("key", Characters(), primary_key=True),
    Column("conversation_id", ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False),
    Index("ix_conversation_keys_conversation_id", "conversation_id"),
)

conversation_blocks = Table(
    "conversation_blocks",
    metadata,
    Column("conversation_id", ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True),
    Column("block_id", ForeignKey("blocks.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Position(0), nullable=False),
    Index("ix_conversation_blocks_block_id", "block_id"),
)
"""The blocks of a conversation that replace its agent's blocks with the same labels."""

messages = _listed(
    "messages",
    Column("agent_id", ForeignKey("agents.id", ondelete="CASCADE"), nullable=False),
    Column("role", Word(Role), nullable=False),
    Column("parts", Typed(tuple[ContentPart, ...], UNREADABLE), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("name", Characters()),
    Column("otid", Characters()),
    Column("sender_id", Characters()),
    Column("run_id", Characters()),
    Column("step_id", Characters()),
    Index("ix_messages_tenant", "tenant", "ordinal"),
    Index("ix_messages_agent_id", "agent_id", "ordinal"),
    Index("ix_messages_run_id", "run_id", "ordinal"),
)

thread_messages = Table(
    "thread_messages",
    metadata,
    Column("thread_key", Characters(), primary_key=True),
    Column("position", Position(0), primary_key=True),
    Column("message_id", ForeignKey("messages.id", ondelete="CASCADE"), nullable=False),
    Index("ix_thread_messages_message_id", "message_id", "thread_key", unique=True),
)

runs = _listed(
    "runs",
    Column("agent_id", ForeignKey("agents.id", ondelete="CASCADE"), nullable=False),
    Column("conversation_id", ForeignKey("conversations.id", ondelete="CASCADE")),
    Column("thread_key", Characters(), nullable=False),
    Column("status", Word(RunStatus, RunStatus.FAILED), nullable=False),
    Column("background", Boolean, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("model", Characters()),
    Column("run_type", Characters(), nullable=False),
    Column("request_config", Typed(RequestConfig, RequestConfig()), nullable=False),
    Column("request_extras", Typed(RequestExtras)),
    Column("input", Typed(tuple[Message, ...], ()), nullable=False),
    Column("owner", Characters(), nullable=False),
    Column("token", Whole(0), nullable=False),
    Column("completed_at", Moment),
    Column("stop_reason", Word(StopReason, StopReason.ERROR)),
    Column("error", Typed(RunError)),
    Column("usage", Typed(Usage)),
    Column("duration_ns", Whole),
    Column("cancel_requested_at", Moment),
    Column("log_deleted_at", Moment),
    Column("callback_url", Characters()),
    Column("callback_host", Characters()),
    Column("callback_sent_at", Moment),
    Column("callback_status_code", Integer),
    Column("callback_error", Characters()),
    Column("callback_due_at", Moment),
    Column("callback_tries", Integer, server_default=text("0"), nullable=False),
    Column("begun_calls", Typed(tuple[str, ...])),
    Column("turn_plan", LongText()),
    Column("notes", Typed(RunNotes, RunNotes()), server_default=text("'{}'"), nullable=False),
    Column("attempts", Typed(tuple[Attempt, ...], ()), server_default=text("'[]'"), nullable=False),
    Column("interrupted_at", Moment),
    Column("traceparent", Characters()),
    Column("first_owner", Characters(), server_default=text("''"), nullable=False),
    Column("input_text", Characters()),
    Column("first_event_at", Moment),
    Column("event_count", Whole),
    Column("log_bytes", Whole),
    partial_index("uq_runs_active_thread_key", "thread_key", ACTIVE, unique=True),
    Index("ix_runs_tenant_created_at", "tenant", "created_at", "ordinal"),
    Index("ix_runs_agent_id_created_at", "agent_id", "created_at", "ordinal"),
    Index("ix_runs_conversation_id", "conversation_id"),
    partial_index("ix_runs_active_owner", "owner", ACTIVE),
    partial_index("ix_runs_kept_completed_at", "completed_at", LOG_KEPT),
    partial_index("ix_runs_callback_due_at", "callback_due_at", CALLBACK_DUE),
    partial_index("ix_runs_unsuccessful", "ordinal", UNSUCCESSFUL),
)

steps = _listed(
    "steps",
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("agent_id", Characters(), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("model", Characters()),
    Column("usage", Typed(Usage, Usage()), nullable=False),
    Column("stop_reason", Word(StopReason, StopReason.ERROR)),
    Column("status", Characters(), nullable=False),
    Column("error_type", Characters()),
    Index("ix_steps_run_id", "run_id", "created_at", "ordinal"),
)

request_keys = Table(
    "request_keys",
    metadata,
    Column("tenant", Characters(), primary_key=True),
    Column("digest", Characters(), primary_key=True),
    Column("payload_sha256", Characters(), nullable=False),
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Index("ix_request_keys_run_id", "run_id"),
)

run_otids = Table(
    "run_otids",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("otid", Characters(), primary_key=True),
    Column("tenant", Characters(), nullable=False),
    Index("ix_run_otids_tenant_otid", "tenant", "otid"),
)

hidden_events = Table(
    "hidden_events",
    metadata,
    Column("ordinal", Ordinal, primary_key=True),
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("after_seq", Whole(0), nullable=False),
    Column("frame", LongText(), nullable=False),
    Index("ix_hidden_events_run_id", "run_id", "ordinal"),
)
"""Events of active runs that are not in their logs."""

run_timelines = Table(
    "run_timelines",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("token", Whole(0), primary_key=True, autoincrement=False),
    Column("commits", LongText(), nullable=False),
)
"""The times of the events in the logs of runs, with a row for each owner that wrote them."""

cut_offs = Table(
    "cut_offs",
    metadata,
    Column("ordinal", Ordinal, primary_key=True),
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("at", Moment, nullable=False),
    Column("reason", Characters(), nullable=False),
    Column("cursor", Whole(0), nullable=False),
    Column("client", Characters(), nullable=False),
    Column("transport", Characters(), nullable=False),
    Column("process", Characters(), nullable=False),
    Index("ix_cut_offs_run_id", "run_id", "ordinal"),
)
"""Readers that were cut off before the end of their run."""

abandoned_logs = Table(
    "abandoned_logs",
    metadata,
    Column("run_id", Characters(), primary_key=True),
    Column("abandoned_at", Moment, nullable=False),
)
"""Logs to delete whose run was deleted. A crash in between therefore leaks no log."""

owners = Table(
    "owners",
    metadata,
    Column("id", Characters(), primary_key=True),
    Column("lease_seconds", Float, nullable=False),
    Column("beat_at", Moment, nullable=False),
    Column("reported_at", Moment),
    Column("report", LongText()),
)
"""The processes that hold leases, each with one row for all its runs.

``runs.owner`` is not a foreign key: a run whose owner has no row here is an orphan.
"""

api_keys = _listed(
    "api_keys",
    Column("name", Characters(), nullable=False),
    Column("prefix", Characters(), nullable=False),
    Column("secret_sha256", Characters(), nullable=False, unique=True),
    Column("created_at", Moment, nullable=False),
    Column("revoked_at", Moment),
    Column("last_used_at", Moment),
    Column("expires_at", Moment),
    Column("scope_names", Typed(tuple[str, ...], ())),
)

callback_secrets = Table(
    "callback_secrets",
    metadata,
    Column("ordinal", Ordinal, primary_key=True),
    Column("tenant", Characters(), nullable=False),
    Column("secret", Characters(), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("signs_until", Moment),
    Index("ix_callback_secrets_tenant", "tenant", "ordinal"),
)
"""The secrets that sign the callbacks of each tenant, in plain text because signing needs them.

``signs_until`` is the end of the overlap of a replaced secret.
"""

stream_tokens = _listed(
    "stream_tokens",
    Column("run_id", Characters()),
    Column("conversation_id", Characters()),
    Column("key_id", Characters()),
    Column("scope_names", Typed(tuple[str, ...], ()), nullable=False),
    Column("origin", Characters()),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("revoked_at", Moment),
    Column("uses", Whole(0), server_default=text("0"), nullable=False),
    Column("last_used_at", Moment),
    Index("ix_stream_tokens_tenant_created_at", "tenant", "created_at", "ordinal"),
    Index("ix_stream_tokens_run_id", "run_id"),
    Index("ix_stream_tokens_conversation_id", "conversation_id"),
    Index("ix_stream_tokens_key_id", "key_id"),
    Index("ix_stream_tokens_expires_at", "expires_at"),
    partial_index("ix_stream_tokens_revoked_at", "revoked_at", REVOKED),
)
"""The stream tokens that have not expired, without anything that would make one valid.

They name runs and conversations without foreign keys: a token for a deleted run finds nothing.
"""

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("ordinal", Ordinal, primary_key=True),
    Column("secret", Characters(), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("retired_at", Moment),
)
"""The secrets that sign stream tokens, in plain text because signing needs them.

The newest one signs. The setting ``token_keys`` keeps them out of the database.
"""

audit_log = Table(
    "audit_log",
    metadata,
    Column("ordinal", Ordinal, primary_key=True),
    Column("id", Characters(), nullable=False, unique=True),
    Column("tenant", Characters()),
    Column("at", Moment, nullable=False),
    Column("actor_kind", Characters(), nullable=False),
    Column("actor_id", Characters()),
    Column("actor_name", Characters()),
    Column("action", Characters(), nullable=False),
    Column("subject", Characters()),
    Column("detail", JsonObject(required=True), nullable=False),
    Index("ix_audit_log_tenant", "tenant", "ordinal"),
    Index("ix_audit_log_at", "at"),
)
"""The acts of operators and clients. An entry without a tenant is about the server itself."""

clock_notes = Table(
    "clock_notes",
    metadata,
    Column("ordinal", Ordinal, primary_key=True),
    Column("boot", Characters()),
    Column("zero_at", Moment, nullable=False),
    Column("steady_since_seconds", Float, nullable=False),
    Column("is_steady", Boolean, nullable=False),
)
"""The last note of how the clock stood, in one row."""

for _table in metadata.sorted_tables:
    for _column in _table.columns:
        if isinstance(_column.type, StoredType):
            _column.type.column = f"{_table.name}.{_column.name}"
