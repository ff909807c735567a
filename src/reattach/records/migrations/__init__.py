"""The history of the schema, as Alembic migrations, and the way to the newest.

A change of ``schema`` needs a migration in ``versions`` and its revision as ``HEAD``; a test
tells when either was forgotten.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, inspect, text

from reattach.errors import StartupError

if TYPE_CHECKING:
    from alembic.config import Config

HEAD: Final = "0001"
"""The newest revision. It stands here so that an up-to-date database needs no Alembic."""

_one_at_a_time = threading.Lock()
"""Alembic keeps the migration under way in globals of the process."""


def upgrade(connection: Connection) -> None:
    """Bring the schema to ``HEAD``, in the transaction that the connection is in.

    Raises StartupError, changing nothing, if the schema is newer than ``HEAD``.
    """
    present = revision(connection)
    if present == HEAD:
        return

    from alembic import command
    from alembic.script import ScriptDirectory

    config = configuration(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if present is not None and present not in known:
        raise StartupError(
            f"The database has schema revision {present}, which a newer version of Reattach "
            f"wrote; this one knows revisions up to {HEAD}. Run that version or a newer one, "
            "or start with another data directory."
        )
    with _one_at_a_time:
        command.upgrade(config, "head")


def revision(connection: Connection) -> str | None:
    """The revision of the schema; None if there is none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def configuration(connection: Connection) -> "Config":
    """What Alembic's commands need to work on this connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
