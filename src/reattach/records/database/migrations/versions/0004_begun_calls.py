"""The tool calls of a run that have begun, for the process that ends it."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0004"
down_revision: Final = "0003"


def upgrade() -> None:
    op.add_column("runs", sa.Column("begun_calls", sa.JSON(none_as_null=True)))
