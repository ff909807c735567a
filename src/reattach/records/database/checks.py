"""What an operator should know of the database of the records."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from reattach.diagnostics import Diagnostic
from reattach.domain.errors import ReattachError, StartupError
from reattach.domain.ids import new_uuid
from reattach.records.database import postgresql
from reattach.records.database.failure import failure_of
from reattach.records.database.revision import find_revision
from reattach.records.database.url import address_of, backend_of

CHECK_SECONDS: Final = 5.0
"""How long one check may take."""

CONNECTIONS: Final = postgresql.WRITERS + postgresql.READERS + 2
"""What one process takes at most; one of them listens."""

_REACHABLE: Final = "database reachable"
_QUERIES: Final = 15
_SLOW_SECONDS: Final = 0.02
"""A query that takes longer is felt: a send needs several."""
_CLOCK_SECONDS: Final = 2.0
"""A difference that people would see in what they read."""
_NOTIFY: Final = "SELECT pg_notify(:channel, :payload)"

_SEVERAL: Final = "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')"
_USED: Final = """
SELECT current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
"""

_Look = Callable[[AsyncConnection], Awaitable[Diagnostic]]


async def check_records(url: str, *, processes: int = 1) -> AsyncIterator[Diagnostic]:
    """Look at the database of the URL, one thing after the other; it raises nothing.

    ``processes`` is how many of this server want connections. Nothing is changed.
    """
    try:
        address = address_of(url)
        if backend_of(address) == "postgresql":
            engine = await asyncio.to_thread(postgresql.writers, address)
            try:
                async for diagnostic in _examine_server(engine, processes):
                    yield diagnostic
                    if diagnostic.what == _REACHABLE and diagnostic.level == "wrong":
                        return
            finally:
                await engine.dispose()
    except StartupError as error:
        remedy = error.remedy or "Correct REATTACH_DATABASE_URL."
        yield Diagnostic("wrong", "database", error.fact, remedy)
        return
    yield await _checked("database schema", partial(_schema, url))


async def _examine_server(engine: AsyncEngine, processes: int) -> AsyncIterator[Diagnostic]:
    reached = await _checked(_REACHABLE, partial(_reachable, engine))
    yield reached
    if reached.level == "wrong":
        return
    looks: list[tuple[str, _Look]] = [
        ("database version", _version),
        ("database latency", _latency),
        ("database role", _role),
        ("database connections", partial(_connections, processes=processes)),
        ("database commits", _commits),
        ("database clock", _clock),
    ]
    for what, look in looks:
        yield await _checked(what, partial(_with_connection, engine, look))
    yield await _checked("database notices", partial(_notices, engine))


async def _checked(what: str, look: Callable[[], Awaitable[Diagnostic]]) -> Diagnostic:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await look()
    except StartupError as error:
        return Diagnostic("wrong", what, error.fact, error.remedy or "See above.")
    except (ReattachError, DBAPIError, OSError, TimeoutError) as error:
        failure = failure_of(error)
        return Diagnostic("wrong", what, failure.reason, failure.remedy)


async def _with_connection(engine: AsyncEngine, look: _Look) -> Diagnostic:
    async with engine.connect() as connection:
        return await look(connection)


async def _reachable(engine: AsyncEngine) -> Diagnostic:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    return Diagnostic("ok", _REACHABLE, "it answers")


async def _version(connection: AsyncConnection) -> Diagnostic:
    try:
        await connection.run_sync(postgresql.require_fit)
    except StartupError as error:
        return Diagnostic("wrong", "database version", error.fact, error.remedy)
    version = (await connection.execute(text("SHOW server_version"))).scalar_one()
    return Diagnostic("ok", "database version", f"PostgreSQL {version}, UTF8")


async def _latency(connection: AsyncConnection) -> Diagnostic:
    took = []
    for _ in range(_QUERIES):
        began = time.perf_counter()
        await connection.execute(text("SELECT 1"))
        took.append(time.perf_counter() - began)
    median, worst = statistics.median(took), max(took)
    said = f"a query takes {median * 1000:.1f} ms (median), {worst * 1000:.1f} ms (worst)"
    if median > _SLOW_SECONDS:
        remedy = "Run the server nearer to its database: a send needs several queries."
        return Diagnostic("warning", "database latency", said, remedy)
    return Diagnostic("ok", "database latency", said)


async def _role(connection: AsyncConnection) -> Diagnostic:
    is_standby, read_only = (await connection.execute(text(_SEVERAL))).one()
    if is_standby or read_only == "on":
        said = "it is a standby" if is_standby else "transactions are read-only by default"
        remedy = (
            "Name the primary in REATTACH_DATABASE_URL; with several hosts, add "
            "target_session_attrs=read-write."
        )
        return Diagnostic("wrong", "database role", said, remedy)
    return Diagnostic("ok", "database role", "primary, it can be written to")


async def _connections(connection: AsyncConnection, *, processes: int) -> Diagnostic:
    most, used = (await connection.execute(text(_USED))).one()
    wanted = processes * CONNECTIONS
    said = f"{used} of {most} are used; this server takes up to {wanted}"
    if most < wanted:
        remedy = "Raise max_connections, or lower REATTACH_WORKERS."
        return Diagnostic("wrong", "database connections", said, remedy)
    if most - used < wanted:
        remedy = (
            f"Raise max_connections to {CONNECTIONS} for each process and some for others, unless "
            "it is this server that uses them now."
        )
        return Diagnostic("warning", "database connections", said, remedy)
    return Diagnostic("ok", "database connections", said)


async def _commits(connection: AsyncConnection) -> Diagnostic:
    setting = (await connection.execute(text("SHOW synchronous_commit"))).scalar_one()
    said = f"synchronous_commit {setting}"
    if setting == "off":
        remedy = (
            "Set synchronous_commit on: a crash of the database now loses what was acknowledged "
            "in its last moments, such as runs that have begun and messages."
        )
        return Diagnostic("warning", "database commits", said, remedy)
    return Diagnostic("ok", "database commits", said)


async def _clock(connection: AsyncConnection) -> Diagnostic:
    before = time.time()
    answer = await connection.execute(text("SELECT extract(epoch FROM clock_timestamp())::float8"))
    behind = (before + time.time()) / 2 - float(answer.scalar_one())
    said = f"this machine's is {abs(behind):.1f} s {'ahead' if behind > 0 else 'behind'}"
    if abs(behind) > _CLOCK_SECONDS:
        remedy = "Let both machines use NTP. Times in answers are off; leases are not affected."
        return Diagnostic("warning", "database clock", said, remedy)
    return Diagnostic("ok", "database clock", said)


async def _notices(engine: AsyncEngine) -> Diagnostic:
    payload = f"doctor {new_uuid()}"  # Servers that listen pass over what they do not know.
    try:
        async with asyncio.timeout(CHECK_SECONDS - 1), postgresql.listening(engine.url) as notices:
            async with engine.begin() as connection:
                parameters = {"channel": postgresql.CHANNEL, "payload": payload}
                await connection.execute(text(_NOTIFY), parameters)
            async for notice in notices:
                if notice == payload:
                    return Diagnostic("ok", "database notices", "a notice came through")
    except TimeoutError:
        pass
    remedy = (
        "Connect to the server itself, or to a pooler in session mode: a pooler in transaction "
        "mode, such as PgBouncer's, keeps notices from arriving."
    )
    return Diagnostic("wrong", "database notices", "what LISTEN waits for does not come", remedy)


async def _schema(url: str) -> Diagnostic:
    revision = await find_revision(url)
    there = revision.present or "no schema"
    if revision.present == revision.needed:
        return Diagnostic("ok", "database schema", f"revision {there}")
    said = f"there: {there}, needed: {revision.needed}"
    return Diagnostic("wrong", "database schema", said, revision.remedy)
