"""The first schema."""

from typing import Final

import sqlalchemy as sa

from reattach.records.database.columns import partial_index
from reattach.records.database.migrations.tables import child, create, create_listed

revision: Final = "0001"
down_revision: Final = None

MOMENT: Final = sa.DateTime(timezone=True)
JSON: Final = sa.JSON(none_as_null=True)
ACTIVE: Final = sa.text("status IN ('created', 'running')")
LOG_KEPT: Final = sa.text("log_deleted_at IS NULL")


def upgrade() -> None:
    create_agents()
    create_agent_tags()
    create_blocks()
    create_agent_blocks()
    create_conversations()
    create_messages()
    create_thread_messages()
    create_runs()
    create_steps()
    create_request_keys()
    create_run_otids()
    create_abandoned_logs()
    create_api_keys()


def create_agents() -> None:
    create_listed(
        "agents",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("system", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("agent_type", sa.String(), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("model", sa.String()),
        sa.Column("model_settings", JSON),
        sa.Column("embedding", sa.String()),
        sa.Column("context_window_limit", sa.BigInteger()),
        sa.Column("timezone", sa.String()),
        sa.Column("hidden", sa.Boolean()),
        sa.Column("metadata", JSON),
        sa.Column("settings", JSON, nullable=False),
        sa.Column("last_run_completion", MOMENT),
        sa.Column("last_run_duration_ms", sa.BigInteger()),
        sa.Column("last_stop_reason", sa.String()),
        sa.Index("ix_agents_tenant_created_at", "tenant", "created_at", "ordinal"),
    )


def create_agent_tags() -> None:
    create(
        "agent_tags",
        child("agent_tags", "agent_id", "agents"),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.Index("ix_agent_tags_tag", "tag", "agent_id"),
        key=("agent_id", "position"),
    )


def create_blocks() -> None:
    create_listed(
        "blocks",
        sa.Column("label", sa.String()),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("limit", sa.BigInteger()),
        sa.Column("read_only", sa.Boolean(), nullable=False),
        sa.Column("hidden", sa.Boolean()),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("tags", JSON, nullable=False),
        sa.Index("ix_blocks_tenant_created_at", "tenant", "created_at", "ordinal"),
    )


def create_agent_blocks() -> None:
    create(
        "agent_blocks",
        child("agent_blocks", "agent_id", "agents"),
        child("agent_blocks", "block_id", "blocks"),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Index("ix_agent_blocks_block_id", "block_id"),
        key=("agent_id", "block_id"),
    )


def create_conversations() -> None:
    create_listed(
        "conversations",
        child("conversations", "agent_id", "agents"),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("summary", sa.Text()),
        sa.Column("description", sa.Text()),
        sa.Column("model", sa.String()),
        sa.Column("model_settings", JSON),
        sa.Column("context_window_limit", sa.BigInteger()),
        sa.Column("hidden", sa.Boolean()),
        sa.Column("archived_at", MOMENT),
        sa.Column("last_message_at", MOMENT),
        sa.Column("last_run_completion", MOMENT),
        sa.Column("deleted_at", MOMENT),
        sa.Index("ix_conversations_agent_id_created_at", "agent_id", "created_at", "ordinal"),
        sa.Index("ix_conversations_tenant_created_at", "tenant", "created_at", "ordinal"),
    )


def create_messages() -> None:
    create_listed(
        "messages",
        child("messages", "agent_id", "agents"),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("parts", JSON, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("name", sa.String()),
        sa.Column("otid", sa.String()),
        sa.Column("sender_id", sa.String()),
        sa.Column("run_id", sa.String()),
        sa.Column("step_id", sa.String()),
        sa.Index("ix_messages_agent_id", "agent_id", "ordinal"),
        sa.Index("ix_messages_run_id", "run_id", "ordinal"),
    )


def create_thread_messages() -> None:
    create(
        "thread_messages",
        sa.Column("thread_key", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        child("thread_messages", "message_id", "messages"),
        sa.Index("ix_thread_messages_message_id", "message_id", "thread_key", unique=True),
        key=("thread_key", "position"),
    )


def create_runs() -> None:
    create_listed(
        "runs",
        child("runs", "agent_id", "agents"),
        child("runs", "conversation_id", "conversations", nullable=True),
        sa.Column("thread_key", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("background", sa.Boolean(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("model", sa.String()),
        sa.Column("run_type", sa.String(), nullable=False),
        sa.Column("request_config", JSON, nullable=False),
        sa.Column("input", JSON, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("completed_at", MOMENT),
        sa.Column("stop_reason", sa.String()),
        sa.Column("error", JSON),
        sa.Column("usage", JSON),
        sa.Column("duration_ns", sa.BigInteger()),
        sa.Column("cancel_requested_at", MOMENT),
        sa.Column("log_deleted_at", MOMENT),
        partial_index("ix_runs_active_owner", "owner", ACTIVE),
        sa.Index("ix_runs_agent_id_created_at", "agent_id", "created_at", "ordinal"),
        sa.Index("ix_runs_conversation_id", "conversation_id"),
        partial_index("ix_runs_kept_completed_at", "completed_at", LOG_KEPT),
        sa.Index("ix_runs_tenant_created_at", "tenant", "created_at", "ordinal"),
        partial_index("uq_runs_active_thread_key", "thread_key", ACTIVE, unique=True),
    )


def create_steps() -> None:
    create_listed(
        "steps",
        child("steps", "run_id", "runs"),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("model", sa.String()),
        sa.Column("usage", JSON, nullable=False),
        sa.Column("stop_reason", sa.String()),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("error_type", sa.String()),
        sa.Index("ix_steps_run_id", "run_id", "created_at", "ordinal"),
    )


def create_request_keys() -> None:
    create(
        "request_keys",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("payload_sha256", sa.String(), nullable=False),
        child("request_keys", "run_id", "runs"),
        sa.Index("ix_request_keys_run_id", "run_id"),
        key=("tenant", "digest"),
    )


def create_run_otids() -> None:
    create(
        "run_otids",
        child("run_otids", "run_id", "runs"),
        sa.Column("otid", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Index("ix_run_otids_tenant_otid", "tenant", "otid"),
        key=("run_id", "otid"),
    )


def create_abandoned_logs() -> None:
    create(
        "abandoned_logs",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("abandoned_at", MOMENT, nullable=False),
        key=("run_id",),
    )


def create_api_keys() -> None:
    create_listed(
        "api_keys",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("revoked_at", MOMENT),
        sa.Column("last_used_at", MOMENT),
        sa.UniqueConstraint("secret_sha256", name="uq_api_keys_secret_sha256"),
    )
