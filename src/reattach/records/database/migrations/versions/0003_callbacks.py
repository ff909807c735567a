"""Callbacks: the URL to call at a run's end, the due time, and the outcome."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"

MOMENT: Final = sa.DateTime(timezone=True)
CALLBACK_DUE: Final = sa.text("callback_due_at IS NOT NULL")


def upgrade() -> None:
    for column in (
        sa.Column("callback_url", sa.String()),
        sa.Column("callback_sent_at", MOMENT),
        sa.Column("callback_status_code", sa.Integer()),
        sa.Column("callback_error", sa.String()),
        sa.Column("callback_due_at", MOMENT),
        sa.Column("callback_tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
    ):
        op.add_column("runs", column)
    op.create_index(
        "ix_runs_callback_due_at",
        "runs",
        ["callback_due_at"],
        sqlite_where=CALLBACK_DUE,
        postgresql_where=CALLBACK_DUE,
    )
