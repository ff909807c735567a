"""Which schema a database has, found out without changing it."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from reattach.domain.errors import StartupError
from reattach.records.database import migrations, postgresql, sqlite
from reattach.records.database.database import failures_told
from reattach.records.database.url import address_of, backend_of

_UPGRADE: Final = "Run `reattach db upgrade`."


@dataclass(frozen=True, slots=True)
class Revision:
    """The revision of a schema, and the one that this version needs."""

    present: str | None
    """None if there is no schema."""
    needed: str
    remedy: str
    """What to do if they differ."""


async def find_revision(url: str) -> Revision:
    """The revision of the database of the URL.

    Raises StartupError for a URL that names no database we know, StoreUnavailableError if it can
    not be reached.
    """
    address = address_of(url)
    with failures_told():
        present = await _present(address)
    try:
        await asyncio.to_thread(migrations.refuse_newer, present)
        remedy = _UPGRADE
    except StartupError as error:
        remedy = error.detail  # The fact too: the doctor shows only the two revisions.
    return Revision(present, migrations.HEAD, remedy)


async def _present(address: URL) -> str | None:
    if backend_of(address) == "sqlite" and not await asyncio.to_thread(_file_of(address).exists):
        return None  # Looking would make it.
    # A thread of its own, since drivers read files when they are loaded.
    engine = await asyncio.to_thread(_engine, address)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(migrations.revision)
    finally:
        await engine.dispose()


def _engine(address: URL) -> AsyncEngine:
    if backend_of(address) == "sqlite":
        return sqlite.readers(address, "process")
    return postgresql.readers(address)


def _file_of(address: URL) -> Path:
    assert address.database is not None, "an address in a file names it"
    return Path(address.database)
