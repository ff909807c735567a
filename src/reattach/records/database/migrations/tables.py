"""Tables as the migrations create them. The names of constraints never change."""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

ORDINAL: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def create(
    table: str, *parts: sa.Column[Any] | sa.Constraint | sa.Index, key: tuple[str, ...]
) -> None:
    """Create a table with the primary key ``key``."""
    op.create_table(table, *parts, sa.PrimaryKeyConstraint(*key, name=f"pk_{table}"))


def create_listed(table: str, *parts: sa.Column[Any] | sa.Constraint | sa.Index) -> None:
    """Create a table whose rows clients query by id, each the row of a tenant."""
    create(
        table,
        sa.Column("ordinal", ORDINAL, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        *parts,
        sa.UniqueConstraint("id", name=f"uq_{table}_id"),
        key=("ordinal",),
    )


def child(table: str, column: str, parent: str, *, nullable: bool = False) -> sa.Column[Any]:
    """Return a column with the id of a row of ``parent``, which deletes its children with it."""
    key = sa.ForeignKey(f"{parent}.id", name=f"fk_{table}_{column}", ondelete="CASCADE")
    return sa.Column(column, sa.String(), key, nullable=nullable)
