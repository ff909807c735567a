from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy import Connection, DateTime, insert, literal, select
from sqlalchemy.dialects import sqlite as sqlalchemy_sqlite

from reattach.domain.clock import SystemClock
from reattach.domain.errors import StartupError, StoreUnavailableError
from reattach.domain.ids import DEFAULT_TENANT
from reattach.records.agents import Agents
from reattach.records.database import schema, sqlite
from reattach.records.database.columns import Moment
from reattach.records.database.database import Database
from reattach.records.database.prepared import PreparedStatement, Steps
from reattach.records.database.sqlite import Durability
from reattach.records.database.transactions import Transactions
from reattach.records.lookup import owned
from reattach.records.paging import SortOrder
from reattach.records.records import Records
from tests.support.record_samples import NOON, OURS, an_agent


def assert_reveals_nothing(error: StoreUnavailableError, path: Path) -> None:
    for word in (str(path), "sqlite", "SELECT", "INSERT"):
        assert word.lower() not in error.detail.lower()
    assert error.retry_after_seconds > 0


@pytest.mark.parametrize(("durability", "synchronous"), [("process", 1), ("power", 2)])
async def test_the_file_has_a_write_ahead_log_and_the_requested_durability(
    path: Path, durability: Durability, synchronous: int
) -> None:
    database = await Database.open(f"sqlite:///{path}", durability=durability)

    def read_pragmas(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    values = await database.in_write(read_pragmas)
    await database.aclose()
    assert values == ["wal", synchronous, 1, 5000]


async def test_a_write_waits_for_another_process_that_writes(
    database: Database, path: Path
) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(Records(database, SystemClock()).keys.create(DEFAULT_TENANT, "n"))
    assert not await Records(database, SystemClock()).keys.exist()
    assert not waiting.done()
    other.execute("COMMIT")
    other.close()
    async with asyncio.timeout(30):
        await waiting


async def test_a_database_that_stays_locked_is_unavailable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 0.05)
    database = await Database.open(f"sqlite:///{path}")
    keys = Records(database, SystemClock()).keys
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError) as refused:
            await keys.create(DEFAULT_TENANT, "n")
        assert_reveals_nothing(refused.value, path)
        other.execute("ROLLBACK")
    other.close()
    await keys.create(DEFAULT_TENANT, "n")
    await database.aclose()


async def test_a_full_database_is_unavailable_for_writes_and_readable(
    database: Database, path: Path
) -> None:
    keys = Records(database, SystemClock()).keys
    await database.in_write(
        lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=1").scalar()
    )

    async def fill() -> None:
        for _ in range(100):
            await keys.create(DEFAULT_TENANT, "n" * 1000)

    with pytest.raises(StoreUnavailableError) as refused:
        await fill()
    assert_reveals_nothing(refused.value, path)
    assert len(await keys.list(None)) < 100


async def test_writes_run_one_after_the_other_in_the_order_of_their_calls(
    database: Database,
) -> None:
    order: list[int] = []

    def write(connection: Connection, number: int) -> None:
        order.append(number)
        row = {"run_id": str(number), "abandoned_at": NOON}
        connection.execute(insert(schema.abandoned_logs), row)

    async with asyncio.timeout(30):
        await asyncio.gather(*(database.in_write(write, number) for number in range(20)))
    assert order == list(range(20))


@pytest.mark.parametrize("place", ["missing/records.db", "."])
async def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Path, place: str) -> None:
    with pytest.raises(StoreUnavailableError) as refused:
        await Database.open(f"sqlite:///{tmp_path / place}")
    assert_reveals_nothing(refused.value, tmp_path)


@pytest.mark.promise("S11")
async def test_the_file_does_not_hold_the_secret_of_a_key(database: Database, path: Path) -> None:
    _, secret = await Records(database, SystemClock()).keys.create(OURS, "laptop")
    files = [file for file in path.parent.iterdir() if file.name.startswith(path.name)]
    assert any(b"laptop" in file.read_bytes() for file in files)
    assert not any(secret.encode() in file.read_bytes() for file in files)


async def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    path.write_bytes(b"a letter, and not a database at all" * 100)
    with pytest.raises(StoreUnavailableError):
        await Database.open(f"sqlite:///{path}")
    assert path.read_bytes().startswith(b"a letter")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
        "mysql://localhost/x",
        "nonsense",
    ],
)
async def test_an_unsupported_url_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(StartupError, match=r"sqlite:///|postgresql://"):
        await Database.open(url)


async def test_several_processes_can_open_one_new_file_at_once(path: Path) -> None:
    async with asyncio.timeout(60):
        databases = await asyncio.gather(*(Database.open(f"sqlite:///{path}") for _ in range(4)))
        for database in databases:
            await database.aclose()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    connection.close()


class Locked:
    """A connection to a file that another process has locked."""

    def __init__(self, connection: Connection) -> None:
        self.dialect = connection.dialect
        self.connection = self.dbapi_connection = self

    def execute(self, *_: object) -> None:
        raise sqlite3.OperationalError("database is locked")


async def test_a_prepared_statement_on_a_locked_file_runs_in_a_thread(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "SHORT_SECONDS", 60.0)  # On a busy machine.
    statement = PreparedStatement(select(literal("found").label("it")))

    def read(_: Connection) -> Steps[list[list[Any]]]:
        (rows,) = yield [(statement, {})]
        return rows

    assert await database.run_prepared(statement) == [["found"]]
    visits = []
    visit = Transactions.visit

    async def counted(self: Transactions, work: Any) -> Any:
        visits.append(work)
        return await visit(self, work)

    monkeypatch.setattr(Transactions, "visit", counted)
    assert await database.in_short_read(read) == [["found"]]
    assert await database.run_prepared(statement) == [["found"]]
    assert visits == []
    loop_connection = database._loop_connection
    assert loop_connection is not None
    with monkeypatch.context() as patch:
        patch.setattr(database, "_loop_connection", Locked(loop_connection))
        assert await database.in_short_read(read) == [["found"]]
        assert await database.run_prepared(statement) == [["found"]]
    assert len(visits) == 2


@pytest.mark.parametrize(
    ("size", "visits"), [(sqlite.LOOP_VALUE_BYTES, 0), (sqlite.LOOP_VALUE_BYTES + 1, 1)]
)
async def test_a_value_that_would_hold_the_event_loop_is_read_in_a_thread(
    database: Database, monkeypatch: pytest.MonkeyPatch, size: int, visits: int
) -> None:
    monkeypatch.setattr(sqlite, "SHORT_SECONDS", 60.0)  # On a busy machine.
    agent = an_agent(system="s" * size)
    agents = Agents(database, SystemClock())
    await agents.create(OURS, agent)
    made = []
    visit = Transactions.visit

    async def counted(self: Transactions, work: Any) -> Any:
        made.append(work)
        return await visit(self, work)

    monkeypatch.setattr(Transactions, "visit", counted)
    assert await agents.get(OURS, agent.id) == agent
    assert len(made) == visits


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("name", ["agents", "blocks", "conversations", "stream_tokens"])
async def test_a_page_is_found_by_its_index_however_far_down_a_list_it_is(
    database: Database, name: str, ascending: bool
) -> None:
    table = schema.metadata.tables[name]
    order = SortOrder(table, table.c.created_at, ascending)
    last = {"created_at": NOON, "ordinal": 5}
    rows = owned(table, OURS).where(order.after(last)).order_by(*order.clauses(backwards=False))

    def explain(connection: Connection) -> str:
        statement = rows.compile(connection, compile_kwargs={"literal_binds": True})
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")
        return "\n".join(row[-1] for row in plan)

    plan = await database.in_read(explain)
    assert (
        f"ix_{name}_tenant_created_at (tenant=? AND created_at{'>' if ascending else '<'}?" in plan
    )
    assert "TEMP B-TREE" not in plan


@given(st.datetimes(timezones=st.timezones() | st.just(UTC)))
def test_times_are_stored_as_sqlalchemy_stores_them(at: datetime) -> None:
    dialect = sqlalchemy_sqlite.dialect()
    ours = Moment().dialect_impl(dialect).bind_processor(dialect)
    theirs = DateTime().dialect_impl(dialect).bind_processor(dialect)
    assert ours is not None
    assert theirs is not None
    assert ours(None) is None
    try:
        in_utc = at.astimezone(UTC)
    except OverflowError:
        assume(False)
    assert ours(at) == theirs(in_utc)
    with pytest.raises(TypeError, match="needs a time zone"):
        ours(at.replace(tzinfo=None))
