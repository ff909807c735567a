"""The first schema."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None

ORDINAL: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
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
    op.create_table(
        "agents",
        sa.Column("ordinal", ORDINAL, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
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
        sa.PrimaryKeyConstraint("ordinal", name="pk_agents"),
        sa.UniqueConstraint("id", name="uq_agents_id"),
        sa.Index("ix_agents_tenant_created_at", "tenant", "created_at", "ordinal"),
    )


def create_agent_tags() -> None:
    op.create_table(
        "agent_tags",
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_agent_tags_agent_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("agent_id", "position", name="pk_agent_tags"),
        sa.Index("ix_agent_tags_tag", "tag", "agent_id"),
    )


def create_blocks() -> None:
    op.create_table(
        "blocks",
        sa.Column("ordinal", ORDINAL, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
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
        sa.PrimaryKeyConstraint("ordinal", name="pk_blocks"),
        sa.UniqueConstraint("id", name="uq_blocks_id"),
        sa.Index("ix_blocks_tenant_created_at", "tenant", "created_at", "ordinal"),
    )


def create_agent_blocks() -> None:
    op.create_table(
        "agent_blocks",
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("block_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_agent_blocks_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["block_id"], ["blocks.id"], name="fk_agent_blocks_block_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("agent_id", "block_id", name="pk_agent_blocks"),
        sa.Index("ix_agent_blocks_block_id", "block_id"),
    )


def create_conversations() -> None:
    op.create_table(
        "conversations",
        sa.Column("ordinal", ORDINAL, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
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
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_conversations_agent_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("ordinal", name="pk_conversations"),
        sa.UniqueConstraint("id", name="uq_conversations_id"),
        sa.Index("ix_conversations_agent_id_created_at", "agent_id", "created_at", "ordinal"),
        sa.Index("ix_conversations_tenant_created_at", "tenant", "created_at", "ordinal"),
    )


def create_messages() -> None:
    op.create_table(
        "messages",
        sa.Column("ordinal", ORDINAL, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("parts", JSON, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("name", sa.String()),
        sa.Column("otid", sa.String()),
        sa.Column("sender_id", sa.String()),
        sa.Column("run_id", sa.String()),
        sa.Column("step_id", sa.String()),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_messages_agent_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("ordinal", name="pk_messages"),
        sa.UniqueConstraint("id", name="uq_messages_id"),
        sa.Index("ix_messages_agent_id", "agent_id", "ordinal"),
        sa.Index("ix_messages_run_id", "run_id", "ordinal"),
    )


def create_thread_messages() -> None:
    op.create_table(
        "thread_messages",
        sa.Column("thread_key", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["messages.id"],
            name="fk_thread_messages_message_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("thread_key", "position", name="pk_thread_messages"),
        sa.Index("ix_thread_messages_message_id", "message_id", "thread_key", unique=True),
    )


def create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("ordinal", ORDINAL, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("conversation_id", sa.String()),
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
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name="fk_runs_agent_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.id"],
            name="fk_runs_conversation_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("ordinal", name="pk_runs"),
        sa.UniqueConstraint("id", name="uq_runs_id"),
        sa.Index("ix_runs_active_owner", "owner", sqlite_where=ACTIVE, postgresql_where=ACTIVE),
        sa.Index("ix_runs_agent_id_created_at", "agent_id", "created_at", "ordinal"),
        sa.Index("ix_runs_conversation_id", "conversation_id"),
        sa.Index(
            "ix_runs_kept_completed_at",
            "completed_at",
            sqlite_where=LOG_KEPT,
            postgresql_where=LOG_KEPT,
        ),
        sa.Index("ix_runs_tenant_created_at", "tenant", "created_at", "ordinal"),
        sa.Index(
            "uq_runs_active_thread_key",
            "thread_key",
            unique=True,
            sqlite_where=ACTIVE,
            postgresql_where=ACTIVE,
        ),
    )


def create_steps() -> None:
    op.create_table(
        "steps",
        sa.Column("ordinal", ORDINAL, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("model", sa.String()),
        sa.Column("usage", JSON, nullable=False),
        sa.Column("stop_reason", sa.String()),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("error_type", sa.String()),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name="fk_steps_run_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("ordinal", name="pk_steps"),
        sa.UniqueConstraint("id", name="uq_steps_id"),
        sa.Index("ix_steps_run_id", "run_id", "created_at", "ordinal"),
    )


def create_request_keys() -> None:
    op.create_table(
        "request_keys",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("payload_sha256", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name="fk_request_keys_run_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "digest", name="pk_request_keys"),
        sa.Index("ix_request_keys_run_id", "run_id"),
    )


def create_run_otids() -> None:
    op.create_table(
        "run_otids",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("otid", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name="fk_run_otids_run_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "otid", name="pk_run_otids"),
        sa.Index("ix_run_otids_tenant_otid", "tenant", "otid"),
    )


def create_abandoned_logs() -> None:
    op.create_table(
        "abandoned_logs",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("abandoned_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_abandoned_logs"),
    )


def create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("ordinal", ORDINAL, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("revoked_at", MOMENT),
        sa.Column("last_used_at", MOMENT),
        sa.PrimaryKeyConstraint("ordinal", name="pk_api_keys"),
        sa.UniqueConstraint("id", name="uq_api_keys_id"),
        sa.UniqueConstraint("secret_sha256", name="uq_api_keys_secret_sha256"),
    )
