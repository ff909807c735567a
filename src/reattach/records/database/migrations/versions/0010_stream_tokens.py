"""Stream tokens of web pages, and the keys that sign them."""

from typing import Final

import sqlalchemy as sa
from alembic import op

from reattach.records.database.migrations.tables import ORDINAL, create, create_listed

revision: Final = "0010"
down_revision: Final = "0009"

MOMENT: Final = sa.DateTime(timezone=True)


def upgrade() -> None:
    create_listed(
        "stream_tokens",
        sa.Column("run_id", sa.String()),
        sa.Column("conversation_id", sa.String()),
        sa.Column("key_id", sa.String()),
        sa.Column("scope_names", sa.JSON(), nullable=False),
        sa.Column("origin", sa.String()),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("revoked_at", MOMENT),
        sa.Column("uses", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_used_at", MOMENT),
    )
    for columns in (
        ["tenant", "created_at", "ordinal"],
        ["run_id"],
        ["conversation_id"],
        ["key_id"],
        ["expires_at"],
    ):
        name = f"ix_stream_tokens_{'_'.join(columns).removesuffix('_ordinal')}"
        op.create_index(name, "stream_tokens", columns)
    revoked = sa.text("revoked_at IS NOT NULL")
    op.create_index(
        "ix_stream_tokens_revoked_at",
        "stream_tokens",
        ["revoked_at"],
        sqlite_where=revoked,
        postgresql_where=revoked,
    )
    create(
        "signing_keys",
        sa.Column("ordinal", ORDINAL, nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("retired_at", MOMENT),
        key=("ordinal",),
    )
