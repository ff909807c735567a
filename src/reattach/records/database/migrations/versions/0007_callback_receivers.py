"""Callbacks by receiver, and the secrets of each tenant that sign them."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0007"
down_revision: Final = "0006"


def upgrade() -> None:
    # Calls that are due now share one place; new ones have their hosts.
    op.add_column("runs", sa.Column("callback_host", sa.String()))
    op.create_table(
        "callback_secrets",
        sa.Column("ordinal", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("signs_until", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("ordinal", name="pk_callback_secrets"),
    )
    op.create_index("ix_callback_secrets_tenant", "callback_secrets", ["tenant", "ordinal"])
