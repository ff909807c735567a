"""The last note of how the clock stood, by which a process detects that it jumped before."""

from typing import Final

import sqlalchemy as sa

from reattach.records.database.migrations.tables import ORDINAL, create

revision: Final = "0014"
down_revision: Final = "0013"


def upgrade() -> None:
    create(
        "clock_notes",
        sa.Column("ordinal", ORDINAL, nullable=False),
        sa.Column("boot", sa.String()),
        sa.Column("zero_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("steady_since_seconds", sa.Float(), nullable=False),
        sa.Column("is_steady", sa.Boolean(), nullable=False),
        key=("ordinal",),
    )
