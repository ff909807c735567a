"""Blocks of single conversations."""

from typing import Final

import sqlalchemy as sa

from reattach.records.database.migrations.tables import child, create

revision: Final = "0005"
down_revision: Final = "0004"


def upgrade() -> None:
    create(
        "conversation_blocks",
        child("conversation_blocks", "conversation_id", "conversations"),
        child("conversation_blocks", "block_id", "blocks"),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Index("ix_conversation_blocks_block_id", "block_id"),
        key=("conversation_id", "block_id"),
    )
