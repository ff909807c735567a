"""The trace of each run."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0013"
down_revision: Final = "0012"


def upgrade() -> None:
    op.add_column("runs", sa.Column("traceparent", sa.String()))
