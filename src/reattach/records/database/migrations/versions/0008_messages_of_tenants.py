"""Messages of a tenant, in the order in which they came."""

from typing import Final

from alembic import op

revision: Final = "0008"
down_revision: Final = "0007"


def upgrade() -> None:
    op.create_index("ix_messages_tenant", "messages", ["tenant", "ordinal"])
