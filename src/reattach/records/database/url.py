"""The URL of the records' database."""

from typing import Literal
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from reattach.domain.errors import StartupError

Backend = Literal["sqlite", "postgresql"]

_EXAMPLE = "postgresql://user:password@host/database"
_POSTGRESQL = {"postgresql", "postgresql+psycopg", "postgres"}


def address_of(url: str) -> URL:
    """Parse the URL and set the driver that is used here.

    Raises StartupError for an unsupported URL, without its password.
    """
    try:
        address = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StartupError(
            "The URL of the records cannot be parsed.", remedy=f"Use one such as {_EXAMPLE}."
        ) from error
    if address.drivername in _POSTGRESQL:
        return _on_server(address)
    if address.get_backend_name() == "sqlite":
        return _in_file(address)
    raise StartupError(
        f"The records cannot be stored in {address.drivername!r}.",
        remedy=f"Use a URL such as {_EXAMPLE}.",
    )


def backend_of(address: URL) -> Backend:
    return "sqlite" if address.get_backend_name() == "sqlite" else "postgresql"


def _in_file(address: URL) -> URL:
    # Connections cannot share a database in memory.
    if address.database in {None, "", ":memory:"} or "mode" in address.query:
        raise StartupError(
            "The records need a SQLite database in a file.",
            remedy="Use a URL such as sqlite:////var/lib/reattach/reattach.db.",
        )
    return address.set(drivername="sqlite+pysqlite")


def _on_server(address: URL) -> URL:
    if not address.database:
        raise StartupError(
            "The URL of the records names no database.",
            remedy=f"Use one such as {_EXAMPLE}.",
        )
    # As in libpq, the host may be the folder of a socket: %2Frun%2Fpostgresql.
    host = unquote(address.host) if address.host else None
    return address.set(drivername="postgresql+psycopg", host=host)
