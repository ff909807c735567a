"""The revision of a database's schema, read without changing the database."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import URL

from reattach.domain.errors import StartupError
from reattach.records.database import migrations, postgresql, sqlite
from reattach.records.database.failure import translate_failures
from reattach.records.database.transactions import Transactions
from reattach.records.database.url import address_of, backend_of

UPGRADE: Final = "reattach db upgrade"
"""The command that upgrades a schema, if the environment has the settings of the server."""


@dataclass(frozen=True, slots=True)
class Revision:
    """The revision of a schema, and the one that this version needs."""

    present: str | None
    """None if there is no schema."""
    needed: str
    remedy: str
    """The next step if they differ."""


async def find_revision(url: str, *, upgrade: str = UPGRADE) -> Revision:
    """Read the revision of the database of the URL, which the command ``upgrade`` upgrades.

    Raises:
        StartupError: The URL names no supported database.
        StoreUnavailableError: The database cannot be reached.
    """
    address = address_of(url)
    with translate_failures():
        present = await _read(address)
    try:
        await asyncio.to_thread(migrations.refuse_newer, present)
        remedy = f"Run `{upgrade}`."
    except StartupError as error:
        remedy = error.detail  # The fact too: the doctor shows only the two revisions.
    return Revision(present, migrations.HEAD, remedy)


async def _read(address: URL) -> str | None:
    if backend_of(address) == "sqlite" and not await asyncio.to_thread(_file_of(address).exists):
        return None  # Connecting would create the file.
    # In a thread, because importing a driver reads files.
    transactions = await asyncio.to_thread(_reads, address)
    try:
        return await transactions.run(migrations.revision)
    finally:
        await transactions.aclose()


def _reads(address: URL) -> Transactions:
    if backend_of(address) == "sqlite":
        return sqlite.reads(address, "process")
    return postgresql.reads(address)


def _file_of(address: URL) -> Path:
    assert address.database is not None, "the URL of a SQLite file names it"
    return Path(address.database)
