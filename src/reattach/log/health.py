"""What an operator should know of the store of the event logs."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

from reattach.errors import StartupError
from reattach.findings import Finding
from reattach.log.open import LOCAL_SCHEMES, REDIS_SCHEMES, redis_place


async def examine_log(url: str) -> AsyncIterator[Finding]:
    """Look at the store that the URL names, one thing after the other; it raises nothing."""
    if url.partition(":")[0] in REDIS_SCHEMES:
        try:
            from reattach.log.redis_health import examine_redis

            found = redis_place(url)
        except (ImportError, StartupError) as error:
            remedy = "Install it: pip install 'reattach[cluster]'"
            if isinstance(error, StartupError):
                yield Finding("wrong", "event log", error.detail, "Mend REATTACH_LOG_URL.")
            else:
                yield Finding("wrong", "event log", "the driver of Redis is missing", remedy)
            return
        async for finding in examine_redis(
            found.url, prefix=found.prefix, wait_replicas=found.wait_replicas
        ):
            yield finding
        return
    scheme, _, place = url.partition(":")
    if scheme not in LOCAL_SCHEMES:
        said = f"there is no event log of kind {scheme}:"
        yield Finding("wrong", "event log", said, "Mend REATTACH_LOG_URL.")
        return
    # A file is not opened: the process that has it is the only one that may.
    folder = Path(unquote(place.partition("?")[0])).parent
    if scheme == "sqlite" and not await asyncio.to_thread(os.access, folder, os.W_OK | os.X_OK):
        said = f"{folder} is missing or can not be written to"
        yield Finding("wrong", "event log", said, "Make it, or mend REATTACH_LOG_URL.")
        return
    yield Finding("ok", "event log", "it is of one process alone")
