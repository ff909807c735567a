"""Facts that operators look at: reports of processes, traces, times of events, and cut-offs."""

from typing import Final

import sqlalchemy as sa
from alembic import op

from reattach.records.database.migrations.tables import ORDINAL, child, create

revision: Final = "0012"
down_revision: Final = "0011"

MOMENT: Final = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("owners", sa.Column("reported_at", MOMENT))
    op.add_column("owners", sa.Column("report", sa.Text()))
    for column in (
        sa.Column("traceparent", sa.String()),
        sa.Column("first_owner", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("input_text", sa.String()),
        sa.Column("first_event_at", MOMENT),
        sa.Column("event_count", sa.BigInteger()),
        sa.Column("log_bytes", sa.BigInteger()),
    ):
        op.add_column("runs", column)
    unsuccessful = sa.text("status IN ('failed', 'cancelled')")
    op.create_index(
        "ix_runs_unsuccessful",
        "runs",
        ["ordinal"],
        sqlite_where=unsuccessful,
        postgresql_where=unsuccessful,
    )
    create(
        "run_timelines",
        child("run_timelines", "run_id", "runs"),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("commits", sa.Text(), nullable=False),
        key=("run_id", "token"),
    )
    create(
        "cut_offs",
        sa.Column("ordinal", ORDINAL, nullable=False),
        child("cut_offs", "run_id", "runs"),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("transport", sa.String(), nullable=False),
        sa.Column("process", sa.String(), nullable=False),
        key=("ordinal",),
    )
    op.create_index("ix_cut_offs_run_id", "cut_offs", ["run_id", "ordinal"])
