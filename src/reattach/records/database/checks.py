"""Checks of the database of the records, for the doctor."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from reattach.diagnostics import Diagnostic
from reattach.domain.errors import ReattachError, StartupError
from reattach.domain.ids import new_uuid
from reattach.records.database import postgresql
from reattach.records.database.failure import failure_of
from reattach.records.database.revision import UPGRADE, find_revision
from reattach.records.database.transactions import Transactions
from reattach.records.database.url import address_of, backend_of

CHECK_SECONDS: Final = 5.0
"""How long one check may take."""

CONNECTIONS: Final = postgresql.WRITERS + postgresql.READERS + 2
"""The most that one process uses; one of them listens."""

_REACHABLE: Final = "database reachable"
_QUERIES: Final = 15
_SLOW_SECONDS: Final = 0.02
"""A slower query is noticeable, because a send needs several."""
_CLOCK_SECONDS: Final = 2.0
"""A difference that people would notice in the times they read."""
_NOTIFY: Final = "SELECT pg_notify(:channel, :payload)"

_SEVERAL: Final = "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')"
_USED: Final = """
SELECT current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
"""

_Check = Callable[[Connection], Diagnostic]


async def check_records(
    url: str, *, processes: int = 1, upgrade: str = UPGRADE
) -> AsyncIterator[Diagnostic]:
    """Check the database of the URL, one thing after the other, without changing anything.

    Raises nothing. ``processes`` is the number of processes of this server that connect.
    """
    try:
        address = address_of(url)
        if backend_of(address) == "postgresql":
            server = await asyncio.to_thread(postgresql.writes, address, connections=1)
            try:
                async for diagnostic in _examine_server(server, processes):
                    yield diagnostic
                    if diagnostic.what == _REACHABLE and diagnostic.level == "wrong":
                        return
            finally:
                await server.aclose()
    except StartupError as error:
        remedy = error.remedy or "Correct REATTACH_DATABASE_URL."
        yield Diagnostic("wrong", "database", error.fact, remedy)
        return
    yield await _run("database schema", partial(_schema, url, upgrade))


async def _examine_server(server: Transactions, processes: int) -> AsyncIterator[Diagnostic]:
    checks: list[tuple[str, _Check]] = [
        (_REACHABLE, _reachable),
        ("database version", _version),
        ("database latency", _latency),
        ("database role", _role),
        ("database connections", partial(_connections, processes=processes)),
        ("database commits", _commits),
        ("database clock", _clock),
    ]
    for what, check in checks:
        diagnostic = await _run(what, partial(server.run, check))
        yield diagnostic
        if what == _REACHABLE and diagnostic.level == "wrong":
            return
    yield await _run("database notices", partial(_notifications, server))


async def _run(what: str, check: Callable[[], Awaitable[Diagnostic]]) -> Diagnostic:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check()
    except StartupError as error:
        return Diagnostic("wrong", what, error.fact, error.remedy or "See above.")
    except (ReattachError, DBAPIError, OSError, TimeoutError) as error:
        failure = failure_of(error)
        return Diagnostic("wrong", what, failure.reason, failure.remedy)


def _reachable(connection: Connection) -> Diagnostic:
    connection.execute(text("SELECT 1"))
    return Diagnostic("ok", _REACHABLE, "it answers")


def _version(connection: Connection) -> Diagnostic:
    postgresql.require_fit(connection)
    version = connection.execute(text("SHOW server_version")).scalar_one()
    return Diagnostic("ok", "database version", f"PostgreSQL {version}, UTF8")


def _latency(connection: Connection) -> Diagnostic:
    took = []
    for _ in range(_QUERIES):
        began = time.perf_counter()
        connection.execute(text("SELECT 1"))
        took.append(time.perf_counter() - began)
    median, worst = statistics.median(took), max(took)
    summary = f"a query takes {median * 1000:.1f} ms (median), {worst * 1000:.1f} ms (worst)"
    if median > _SLOW_SECONDS:
        remedy = "Run the server nearer to its database: a send needs several queries."
        return Diagnostic("warning", "database latency", summary, remedy)
    return Diagnostic("ok", "database latency", summary)


def _role(connection: Connection) -> Diagnostic:
    is_standby, read_only = connection.execute(text(_SEVERAL)).one()
    if is_standby or read_only == "on":
        summary = "it is a standby" if is_standby else "transactions are read-only by default"
        remedy = (
            "Name the primary in REATTACH_DATABASE_URL; with several hosts, add "
            "target_session_attrs=read-write."
        )
        return Diagnostic("wrong", "database role", summary, remedy)
    return Diagnostic("ok", "database role", "primary, it can be written to")


def _connections(connection: Connection, *, processes: int) -> Diagnostic:
    most, used = connection.execute(text(_USED)).one()
    wanted = processes * CONNECTIONS
    summary = f"{used} of {most} are used; this server takes up to {wanted}"
    if most < wanted:
        remedy = "Raise max_connections, or lower REATTACH_WORKERS."
        return Diagnostic("wrong", "database connections", summary, remedy)
    if most - used < wanted:
        remedy = (
            f"Raise max_connections to {CONNECTIONS} for each process and some for others, unless "
            "this server itself uses them now."
        )
        return Diagnostic("warning", "database connections", summary, remedy)
    return Diagnostic("ok", "database connections", summary)


def _commits(connection: Connection) -> Diagnostic:
    setting = connection.execute(text("SHOW synchronous_commit")).scalar_one()
    summary = f"synchronous_commit {setting}"
    if setting == "off":
        remedy = (
            "Set synchronous_commit to on: a crash of the database now loses the last acknowledged "
            "writes, such as new runs and messages."
        )
        return Diagnostic("warning", "database commits", summary, remedy)
    return Diagnostic("ok", "database commits", summary)


def _clock(connection: Connection) -> Diagnostic:
    before = time.time()
    answer = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())::float8"))
    behind = (before + time.time()) / 2 - float(answer.scalar_one())
    summary = f"this machine's is {abs(behind):.1f} s {'ahead' if behind > 0 else 'behind'}"
    if abs(behind) > _CLOCK_SECONDS:
        remedy = "Use NTP on both machines. Times in answers are off; leases are not affected."
        return Diagnostic("warning", "database clock", summary, remedy)
    return Diagnostic("ok", "database clock", summary)


async def _notifications(server: Transactions) -> Diagnostic:
    payload = f"doctor {new_uuid()}"  # Listening servers ignore words that they do not know.
    parameters = {"channel": postgresql.CHANNEL, "payload": payload}
    address = server.engine.url
    try:
        async with (
            asyncio.timeout(CHECK_SECONDS - 1),
            postgresql.listening(address) as payloads,
        ):
            await server.run(lambda connection: connection.execute(text(_NOTIFY), parameters))
            async for received in payloads:
                if received == payload:
                    return Diagnostic("ok", "database notices", "a notification arrived")
    except TimeoutError:
        pass
    remedy = (
        "Connect to the server itself, or to a pooler in session mode: a pooler in transaction "
        "mode, such as PgBouncer's, keeps notifications from arriving."
    )
    return Diagnostic("wrong", "database notices", "a notification did not arrive", remedy)


async def _schema(url: str, upgrade: str) -> Diagnostic:
    revision = await find_revision(url, upgrade=upgrade)
    present = revision.present or "no schema"
    if revision.present == revision.needed:
        return Diagnostic("ok", "database schema", f"revision {present}")
    summary = f"present: {present}, needed: {revision.needed}"
    return Diagnostic("wrong", "database schema", summary, revision.remedy)
