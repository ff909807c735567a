"""The event logs for a program that is not the server."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp

from reattach.log.base import Log
from reattach.log.open import open_log
from reattach.log.sqlite.log import SqliteLog
from reattach.server import datadir
from reattach.server.backup.snapshot import snapshot
from reattach.settings import Settings


@asynccontextmanager
async def readable_log(settings: Settings) -> AsyncIterator[Log]:
    """Open the event logs for reading, also while servers use them.

    The logs in a data directory are copied first, because only one process may use their file.

    Raises:
        StartupError: The logs cannot be opened or copied.
    """
    if settings.stores is not None:
        log = await _shared_log(settings)
        try:
            yield log
        finally:
            await log.aclose()
        return
    directory = await asyncio.to_thread(mkdtemp, prefix=".reattach-export-", dir=settings.data_dir)
    try:
        copy = Path(directory) / "events.db"
        await asyncio.to_thread(_copy, datadir.events_file(settings.data_dir), copy)
        log = await SqliteLog.open_file(copy)
        try:
            yield log
        finally:
            await log.aclose()
    finally:
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


@asynccontextmanager
async def own_log(settings: Settings) -> AsyncIterator[Log | None]:
    """Open the event logs for deletion; None if a server owns their data directory.

    No server starts on the directory meanwhile.

    Raises:
        StartupError: The logs cannot be opened.
    """
    if settings.stores is not None:
        log = await _shared_log(settings)
        try:
            yield log
        finally:
            await log.aclose()
        return
    if await asyncio.to_thread(datadir.is_held, settings.data_dir):
        yield None
        return
    with ExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, datadir.lock(settings.data_dir))
        log = await SqliteLog.open_file(datadir.events_file(settings.data_dir))
        try:
            yield log
        finally:
            await log.aclose()


async def _shared_log(settings: Settings) -> Log:
    assert settings.stores is not None, "the stores are shared"
    url = settings.stores.log.get_secret_value()
    return await open_log(url, retention_seconds=settings.retention_seconds)


def _copy(events: Path, copy: Path) -> None:
    with snapshot(events) as state:
        state.copy_to(copy, lambda *_: None)
