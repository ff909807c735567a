"""The data with which another process can continue an active run."""

from typing import Final

import sqlalchemy as sa
from alembic import op

from reattach.records.database.migrations.tables import ORDINAL, child, create

revision: Final = "0009"
down_revision: Final = "0008"


def upgrade() -> None:
    for column in (
        sa.Column("turn_plan", sa.Text()),
        sa.Column("notes", sa.JSON(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("attempts", sa.JSON(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("interrupted_at", sa.DateTime(timezone=True)),
    ):
        op.add_column("runs", column)
    create(
        "hidden_events",
        sa.Column("ordinal", ORDINAL, nullable=False),
        child("hidden_events", "run_id", "runs"),
        sa.Column("after_seq", sa.BigInteger(), nullable=False),
        sa.Column("frame", sa.Text(), nullable=False),
        key=("ordinal",),
    )
    op.create_index("ix_hidden_events_run_id", "hidden_events", ["run_id", "ordinal"])
