"""The migrations of the schema, with Alembic.

A new database gets the current schema at once, without the migrations; tests check that both give
the same. A change of ``schema`` needs a migration in ``versions`` and its revision as ``HEAD``; a
test fails when either is missing.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    inspect,
    select,
)

from reattach.domain.errors import StartupError
from reattach.records.database.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

HEAD: Final = "0014"
"""The newest revision. It is a constant so that a new or current database does not import Alembic,
which takes a sixth of the time of a server's start.
"""

_VERSION: Final = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table, as Alembic defines it."""

_one_at_a_time = threading.Lock()
"""Alembic stores the running migration in global variables."""


def upgrade(connection: Connection) -> None:
    """Bring the schema to ``HEAD`` in the transaction of the connection.

    Raises StartupError, changing nothing, if the schema is newer than ``HEAD``.
    """
    present = revision(connection)
    if present == HEAD:
        return
    if present is None:
        metadata.create_all(connection, checkfirst=False)
        _VERSION.create(connection)
        connection.execute(_VERSION.insert().values(version_num=HEAD))
        return

    from alembic import command

    refuse_newer(present)
    with _one_at_a_time:
        command.upgrade(configuration(connection), "head")


def require_head(present: str | None) -> None:
    """Raise StartupError with the next step unless the revision is ``HEAD``. Reads files."""
    if present == HEAD:
        return
    refuse_newer(present)
    found = "no schema yet" if present is None else f"schema revision {present}"
    raise StartupError(
        f"The database has {found}, and this version of Reattach needs revision {HEAD}.",
        remedy="Run `reattach db upgrade` with the same settings, then start again.",
    )


def refuse_newer(present: str | None) -> None:
    """Raise StartupError for a revision without a migration here. Reads files."""
    if present in {None, HEAD}:
        return

    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(configuration())
    if present in {script.revision for script in scripts.walk_revisions()}:
        return
    raise StartupError(
        f"The database has schema revision {present}, which a newer version of Reattach wrote; "
        f"this one knows revisions up to {HEAD}.",
        remedy="Upgrade Reattach to that version or a newer one, or use another data directory or "
        "database.",
    )


def revision(connection: Connection) -> str | None:
    """Return the revision of the schema; None if there is no schema yet."""
    if not inspect(connection).has_table(_VERSION.name):
        return None
    return connection.execute(select(_VERSION.c.version_num)).scalar()


def configuration(connection: Connection | None = None) -> "Config":
    """Return the configuration of Alembic's commands, with the connection they use, if any."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
