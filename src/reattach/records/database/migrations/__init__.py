"""The history of the schema, as Alembic migrations, and the way to the newest.

A new database gets the schema as it is now, and no history; both ways give the same, as tests
tell. A change of ``schema`` needs a migration in ``versions`` and its revision as ``HEAD``; a test
tells when either was forgotten.
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

HEAD: Final = "0008"
"""The newest revision. It stands here so that a new or up-to-date database needs no Alembic.

Alembic takes a sixth of the time of a server's start to load.
"""

_VERSION: Final = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table, in its own words."""

_one_at_a_time = threading.Lock()
"""Alembic keeps the migration under way in globals of the process."""


def upgrade(connection: Connection) -> None:
    """Bring the schema to ``HEAD``, in the transaction that the connection is in.

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
    """Raise StartupError, which says what to do, unless the revision is ``HEAD``. Reads files."""
    if present == HEAD:
        return
    refuse_newer(present)
    found = "no schema yet" if present is None else f"schema revision {present}"
    raise StartupError(
        f"The database has {found}, and this version of Reattach needs revision {HEAD}.",
        remedy="Run `reattach db upgrade`, then start again.",
    )


def refuse_newer(present: str | None) -> None:
    """Raise StartupError for a revision that no migration here knows. Reads files."""
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
    """The revision of the schema; None if there is none yet."""
    if not inspect(connection).has_table(_VERSION.name):
        return None
    return connection.execute(select(_VERSION.c.version_num)).scalar()


def configuration(connection: Connection | None = None) -> "Config":
    """What Alembic's commands need; those that look at a database, on this connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
