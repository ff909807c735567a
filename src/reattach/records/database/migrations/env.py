"""The script that Alembic runs for each of its commands."""

from typing import Any, Literal

from alembic import context
from sqlalchemy.types import TypeDecorator

from reattach.records.database.schema import metadata


def is_ours(name: str | None, kind: str, _parents: Any) -> bool:
    """Whether a table belongs to the records; the event log shares their database."""
    return kind != "table" or not (name or "").startswith("log_")


def plain_type(kind: str, value: Any, _context: Any) -> str | Literal[False]:
    """Render the type of the database, because our own types may change later."""
    if kind == "type" and isinstance(value, TypeDecorator):
        return f"sa.{value.impl!r}"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_name=is_ours,
    render_item=plain_type,
    # A migration is atomic, on SQLite too.
    transactional_ddl=True,
    # SQLite alters tables by copying them.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
