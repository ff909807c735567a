"""The reports that processes write for each other, beside their leases."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0012"
down_revision: Final = "0011"


def upgrade() -> None:
    op.add_column("owners", sa.Column("reported_at", sa.DateTime(timezone=True)))
    op.add_column("owners", sa.Column("report", sa.Text()))
