"""The audit log."""

from typing import Final

import sqlalchemy as sa
from alembic import op

from reattach.records.database.migrations.tables import ORDINAL, create

revision: Final = "0011"
down_revision: Final = "0010"


def upgrade() -> None:
    create(
        "audit_log",
        sa.Column("ordinal", ORDINAL, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String()),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor_kind", sa.String(), nullable=False),
        sa.Column("actor_id", sa.String()),
        sa.Column("actor_name", sa.String()),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String()),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.UniqueConstraint("id", name="uq_audit_log_id"),
        key=("ordinal",),
    )
    op.create_index("ix_audit_log_tenant", "audit_log", ["tenant", "ordinal"])
    op.create_index("ix_audit_log_at", "audit_log", ["at"])
