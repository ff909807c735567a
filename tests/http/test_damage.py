"""With one damaged row in any table, everything else still works, and so do its intact values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from reattach.domain.ids import DEFAULT_TENANT
from reattach.records.database import damage, schema
from reattach.records.database.columns import JsonObject, Moment, StoredType, Typed, Whole, Word
from tests.support.asgi_server import Server, serving
from tests.support.beats import beat

IN_SQLITE: dict[type[Any], list[str]] = {
    Moment: ["never", ""],
    Word: ["strange"],
    Whole: ["many", "1.5"],
    JsonObject: ["{", "[]"],
    Typed: ["{", '[{"completion_tokens": 12.5}]'],
}
IN_POSTGRESQL: dict[type[Any], list[str]] = {
    Word: ["strange"],
    JsonObject: ["5", "[]"],
    Typed: ["5", '{"completion_tokens": 12.5}'],
}


@pytest.fixture(params=["sqlite", "postgresql"])
def records_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture(autouse=True)
def nothing_logged_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "_logged", {})


@pytest.fixture
async def server(tmp_path: Path, records_url: str) -> AsyncIterator[Server]:
    async with serving(tmp_path, records_url=records_url) as server:
        yield server


_OF_A_RUN = {"messages": "AND run_id IS NOT NULL"}


class Database:
    """Writes into the tables past the server."""

    def __init__(self, url: str) -> None:
        address = sa.make_url(url)
        is_sqlite = address.get_backend_name() == "sqlite"
        self.values = IN_SQLITE if is_sqlite else IN_POSTGRESQL
        self._engine = sa.create_engine(
            address if is_sqlite else address.set(drivername="postgresql+psycopg"),
            poolclass=sa.NullPool,
        )

    async def damage(self, table: str, column: str, value: str) -> Any:
        """Damage the value of the first row that has one; return a function that repairs it."""
        return await asyncio.to_thread(self._damage, table, column, value)

    def execute(self, statement: str) -> None:
        with self._engine.begin() as connection:
            connection.exec_driver_sql(statement)

    async def mend(self, was: Any) -> None:
        await asyncio.to_thread(self._mend, *was)

    def _damage(self, table: str, column: str, value: str) -> Any:
        with self._engine.begin() as connection:
            found = connection.execute(
                sa.text(
                    f'SELECT id, CAST("{column}" AS TEXT) FROM {table} '
                    f'WHERE "{column}" IS NOT NULL {_OF_A_RUN.get(table, "")} '
                    "ORDER BY ordinal LIMIT 1"
                )
            ).one_or_none()
            if found is None:
                return None
            self._set(connection, table, column, found[0], value)
        return table, column, found[0], found[1]

    def _mend(self, table: str, column: str, row_id: str, value: str) -> None:
        with self._engine.begin() as connection:
            self._set(connection, table, column, row_id, value)

    def _set(self, connection: sa.Connection, table: str, column: str, row: str, v: str) -> None:
        cast = ":value"
        if connection.dialect.name == "postgresql":
            kind = schema.metadata.tables[table].c[column].type
            cast = f"CAST(:value AS {'json' if isinstance(kind, Typed | JsonObject) else 'text'})"
        connection.execute(
            sa.text(f'UPDATE {table} SET "{column}" = {cast} WHERE id = :id'),
            {"value": v, "id": row},
        )


async def filled(server: Server) -> tuple[str, str]:
    """An agent and a conversation that have a row in every table, and a value in most columns."""
    block = await server.block("human", "Ada", metadata={"a": 1}, tags=["t"], limit=100)
    agent = await server.agent(
        block_ids=[block["id"]],
        tags=["t"],
        metadata={"a": 1},
        model_settings={"provider_type": "openai", "temperature": 0.5},
        context_window_limit=10_000,
    )
    thread = await server.conversation(agent["id"], isolated_block_labels=["human"])
    await server.send(thread["id"], "word " * 2000)
    await server.send(thread["id"], "[tool=look]")
    await server.made(f"/v1/conversations/{thread['id']}/compact", {})
    return agent["id"], thread["id"]


async def assert_everything_answers(server: Server, agent_id: str, thread_id: str) -> None:
    runs = await server.got("/v1/runs/")
    shown = [*runs[:1], *runs[-2:]]  # Among them the damaged one, wherever its time puts it.
    lists = {
        path: await server.got(path)
        for path in (
            "/v1/agents/",
            "/v1/blocks/",
            f"/v1/agents/{agent_id}",
            f"/v1/agents/{agent_id}/messages",
            f"/v1/agents/{agent_id}/core-memory/blocks",
            f"/v1/conversations/?agent_id={agent_id}",
            f"/v1/conversations/{thread_id}",
            f"/v1/conversations/{thread_id}/messages",
            *(f"/v1/runs/{run['id']}/{what}" for run in shown for what in ("messages", "steps")),
        )
    }
    assert all(lists.values()), [path for path, items in lists.items() if not items]
    for run, following in [*pairwise(runs)][-2:]:
        after = await server.got("/v1/runs/", limit=1, after=run["id"])
        assert [one["id"] for one in after] == [following["id"]]
    sent = await server.send(thread_id, "still there?")
    assert sent["stop_reason"]["stop_reason"] == "end_turn"
    records = server.context.records
    assert len(await records.keys.list(DEFAULT_TENANT)) == 0
    await records.callbacks.claim(10, 60)
    await beat(server.context.runs)
    await server.context.runs.recover()
    await server.context.runs.sweep()


DAMAGED = [
    (table.name, column.name)
    for table in schema.metadata.sorted_tables
    for column in table.columns
    if isinstance(column.type, StoredType) and "id" in table.c and "ordinal" in table.c
    and table.name != "api_keys"
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("nth", [0, 1])
async def test_a_damaged_row_takes_no_list_no_conversation_and_no_send_with_it(
    server: Server, records_url: str, log_lines: list[Any], nth: int
) -> None:
    """A1, A6: one row of any table, each of its values."""
    agent_id, thread_id = await filled(server)
    database = Database(records_url)
    for table in dict.fromkeys(table for table, _ in DAMAGED):
        damaged = []
        for column in (column for named, column in DAMAGED if named == table):
            kind = type(schema.metadata.tables[table].c[column].type)
            if values := database.values.get(kind):
                damaged.append(await database.damage(table, column, values[-nth]))
        damaged = [one for one in damaged if one is not None]
        del log_lines[:]
        await assert_everything_answers(server, agent_id, thread_id)
        reports = [str(line) for line in log_lines if "damaged" in line["event"]]
        assert len(set(reports)) == len(reports), "damage is logged once"
        assert reports or not damaged
        for was in damaged:
            await database.mend(was)


@pytest.mark.slow
async def test_a_server_starts_with_every_table_damaged(
    tmp_path: Path, records_url: str, log_lines: list[Any]
) -> None:
    """A1, A6"""
    async with serving(tmp_path, records_url=records_url) as server:
        agent_id, thread_id = await filled(server)
    database = Database(records_url)
    for table, column in DAMAGED:
        kind = type(schema.metadata.tables[table].c[column].type)
        for value in database.values.get(kind, ())[:1]:
            await database.damage(table, column, value)
    async with serving(tmp_path, records_url=records_url) as server:
        await assert_everything_answers(server, agent_id, thread_id)
        assert any("damaged" in line["event"] for line in log_lines)
        items = await server.got(f"/v1/conversations/{thread_id}/messages")
        assert any("cannot be read" in str(item.get("content")) for item in items)


PROSE = [
    (table.name, column.name)
    for table in schema.metadata.sorted_tables
    for column in table.columns
    if isinstance(column.type, StoredType) and {"id", "ordinal"} <= {*table.c.keys()}
    and table.name != "api_keys"
    and column.name not in {"id", "tenant", "thread_key", "status"}
    and not column.name.endswith("_id")
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("value", ["CAST(x'61ff' AS TEXT)", "x'61ff'"], ids=["text", "bytes"])
async def test_a_value_that_is_not_text_takes_nothing_with_it(tmp_path: Path, value: str) -> None:
    """One value that is not UTF-8 made SQLite's driver refuse all rows beside it."""
    async with serving(tmp_path) as server:
        agent_id, thread_id = await filled(server)
        database = Database(f"sqlite:///{tmp_path / 'records.db'}")
        for table in dict.fromkeys(table for table, _ in PROSE):
            first = f"(SELECT min(ordinal) FROM {table} WHERE 1 {_OF_A_RUN.get(table, '')})"
            for column in (column for named, column in PROSE if named == table):
                database.execute(
                    f'UPDATE {table} SET "{column}" = {value} '
                    f'WHERE ordinal = {first} AND "{column}" IS NOT NULL'
                )
            await assert_everything_answers(server, agent_id, thread_id)
        for block in await server.got("/v1/blocks/"):
            await server.got(f"/v1/blocks/{block['id']}")
        await server.made(f"/v1/conversations/{thread_id}/fork", {})
        await server.made(f"/v1/conversations/{thread_id}/recompile", {})
        changed = await server.client.patch(f"/v1/agents/{agent_id}", json={"name": "mended"})
        assert changed.json()["name"] == "mended"
    async with serving(tmp_path) as server:
        await assert_everything_answers(server, agent_id, thread_id)


@pytest.mark.promise("P7")
@pytest.mark.parametrize("place", ["'garbage'", "x'ff'", "9223372036854775807"])
async def test_a_message_at_a_damaged_place_keeps_no_run_from_its_end(
    tmp_path: Path, place: str
) -> None:
    """The place after the last one could not be computed, so no answer could be stored."""
    async with serving(tmp_path) as server:
        agent = await server.agent()
        thread = await server.conversation(agent["id"])
        await server.send(thread["id"], "one")
        Database(f"sqlite:///{tmp_path / 'records.db'}").execute(
            f"UPDATE thread_messages SET position = {place} WHERE position = 1"
        )
        for text in ("two", "three"):
            sent = await server.send(thread["id"], text)
            assert sent["stop_reason"]["stop_reason"] == "end_turn"
        assert all(run["status"] == "completed" for run in await server.got("/v1/runs/"))
        shown = str(await server.got(f"/v1/conversations/{thread['id']}/messages"))
        assert "two" in shown
        assert "three" in shown
