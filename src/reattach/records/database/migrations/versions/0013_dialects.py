"""The names that clients of other dialects give their conversations, and parts of their sends."""

from typing import Final

import sqlalchemy as sa
from alembic import op

from reattach.records.database.migrations.tables import child, create

revision: Final = "0013"
down_revision: Final = "0012"


def upgrade() -> None:
    op.add_column("runs", sa.Column("request_extras", sa.JSON()))
    create(
        "conversation_keys",
        sa.Column("tenant", sa.String(), nullable=False),
        child("conversation_keys", "agent_id", "agents"),
        sa.Column("dialect", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        child("conversation_keys", "conversation_id", "conversations"),
        key=("tenant", "agent_id", "dialect", "key"),
    )
    op.create_index(
        "ix_conversation_keys_conversation_id", "conversation_keys", ["conversation_id"]
    )
