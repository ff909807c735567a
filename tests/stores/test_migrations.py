from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, NullPool, create_engine, inspect, make_url

from reattach.domain.errors import StartupError
from reattach.records.database import database as sql
from reattach.records.database import schema
from reattach.records.database.database import Database, Upgrade
from reattach.records.database.migrations import HEAD, configuration, revision, upgrade

Way = Callable[[Connection], None]


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    yield engine
    engine.dispose()


def statements(path: Path) -> dict[str, str]:
    """Return the CREATE statements of all tables and indexes, normalised."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    ).fetchall()
    connection.close()
    return {name: normal(sql) for name, sql in rows}


def normal(sql: str) -> str:
    head, _, body = sql.strip().removesuffix(")").partition("(")
    # SQLite writes a column that was added on the line of what stands before it.
    parts = [" ".join(part.split()) for part in re.split(r",\s*\n|, (?=[a-z]\w* [A-Z])", body)]
    return "\n".join([head.strip(), *sorted(parts)])


def open_and_close(place: Path | str) -> None:
    async def opened() -> None:
        url = place if isinstance(place, str) else f"sqlite:///{place}"
        await (await Database.open(url)).aclose()

    asyncio.run(opened())


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Open a transaction on a PostgreSQL."""
    address = make_url(url).set(drivername="postgresql+psycopg")
    with create_engine(address, poolclass=NullPool).begin() as connection:
        yield connection


def test_a_fresh_database_is_at_the_newest_revision(path: Path, engine: Engine) -> None:
    open_and_close(path)
    with engine.connect() as connection:
        assert revision(connection) == HEAD
        scripts = ScriptDirectory.from_config(configuration(connection))
    assert scripts.get_current_head() == HEAD
    assert len(scripts.get_heads()) == len(scripts.get_bases()) == 1


def migrate(connection: Connection) -> None:
    """Upgrade as a database of the first version is upgraded."""
    command.upgrade(configuration(connection), "head")


@pytest.mark.parametrize("way", [upgrade, migrate])
def test_the_migrations_make_the_schema_and_nothing_else(engine: Engine, way: Way) -> None:
    with engine.begin() as connection:
        way(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences: list[Any] = compare_metadata(context, schema.metadata)
    assert differences == []


def test_a_new_database_and_a_migrated_one_have_the_same_schema(
    engine: Engine, path: Path, tmp_path: Path
) -> None:
    with engine.begin() as connection:
        migrate(connection)
    open_and_close(tmp_path / "new.db")
    migrated, made = statements(path), statements(tmp_path / "new.db")
    assert set(migrated) == set(made)
    for name, statement in made.items():
        assert migrated[name] == statement, name
    assert "alembic_version" in made
    assert "WHERE status IN ('created', 'running'" in made["uq_runs_active_thread_key"]


def test_the_migrations_put_no_rows_into_a_new_database(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate(connection)
        for table in schema.metadata.sorted_tables:
            assert connection.execute(table.select()).first() is None, table.name


def test_opening_a_database_again_changes_nothing(path: Path) -> None:
    for _ in range(2):
        open_and_close(path)
        found = statements(path)
        content = path.read_bytes()
    open_and_close(path)
    assert statements(path) == found
    assert path.read_bytes() == content


def test_a_second_upgrade_changes_nothing(engine: Engine, path: Path) -> None:
    with engine.begin() as connection:
        upgrade(connection)
    once = statements(path)
    with engine.begin() as connection:
        upgrade(connection)
        assert revision(connection) == HEAD
    assert statements(path) == once


def test_opening_a_database_of_the_first_version_keeps_its_rows(path: Path, engine: Engine) -> None:
    key = "1, 'key-1', 'tenant', 'app', 'sk', 'hash', '2026-11-22 12:00:00'"
    with engine.begin() as connection:
        command.upgrade(configuration(connection), "0001")
        connection.exec_driver_sql(
            "INSERT INTO api_keys (ordinal, id, tenant, name, prefix, secret_sha256, created_at) "
            f"VALUES ({key})"
        )
        assert not inspect(connection).has_table("owners")
    open_and_close(path)
    with engine.connect() as connection:
        assert revision(connection) == HEAD
        assert inspect(connection).has_table("owners")
        assert connection.exec_driver_sql("SELECT name FROM api_keys").scalar() == "app"


def test_a_newer_schema_is_refused_and_left_as_it_is(path: Path, engine: Engine) -> None:
    open_and_close(path)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(StartupError, match=r"9999.*newer version.*another data directory"):
        open_and_close(path)
    assert path.read_bytes() == before


def test_the_tables_of_the_event_log_are_left_alone(path: Path, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE log_journal (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO log_journal VALUES (7)")
    open_and_close(path)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT id FROM log_journal").scalar() == 7
        command.check(configuration(connection))


def test_no_table_of_the_records_has_the_prefix_of_the_log() -> None:
    assert [name for name in schema.metadata.tables if name.startswith("log_")] == []


def test_an_upgrade_returns_the_revision_before_it(path: Path) -> None:
    url = f"sqlite:///{path}"
    assert sql.upgrade(url) == Upgrade(None, HEAD)
    assert sql.upgrade(url) == Upgrade(HEAD, HEAD)


def test_concurrent_upgrades_of_a_postgresql_migrate_it_once(empty_postgresql_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        upgrades = list(threads.map(sql.upgrade, [empty_postgresql_url] * 4))
    assert sorted(upgrades, key=lambda done: done.before or "") == [
        Upgrade(None, HEAD),
        *[Upgrade(HEAD, HEAD)] * 3,
    ]
    open_and_close(empty_postgresql_url)


@pytest.mark.parametrize("way", [upgrade, migrate])
def test_the_migrations_make_the_schema_in_postgresql_and_nothing_else(
    empty_postgresql_url: str, way: Way
) -> None:
    with connected(empty_postgresql_url) as connection:
        way(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences: list[Any] = compare_metadata(context, schema.metadata)
        indexes = {index["name"]: index for index in inspect(connection).get_indexes("runs")}
    assert differences == []
    active = indexes["uq_runs_active_thread_key"]
    assert active["unique"]
    assert "created" in str(active["dialect_options"]["postgresql_where"])


def test_a_postgresql_without_schema_is_refused_with_the_command_to_run(
    empty_postgresql_url: str,
) -> None:
    with pytest.raises(StartupError, match=r"no schema yet.*`reattach db upgrade`"):
        open_and_close(empty_postgresql_url)
    with connected(empty_postgresql_url) as connection:
        assert inspect(connection).get_table_names() == []


def test_a_postgresql_with_an_older_schema_is_refused_with_the_command_to_run(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reattach.records.database.migrations.HEAD", "9999")
    with pytest.raises(StartupError, match=rf"revision {HEAD}.*needs.*9999.*`reattach db upgrade`"):
        open_and_close(postgresql_url)


def test_a_postgresql_with_a_newer_schema_is_refused_and_left_as_it_is(
    empty_postgresql_url: str,
) -> None:
    sql.upgrade(empty_postgresql_url)
    with connected(empty_postgresql_url) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    for refused in (open_and_close, sql.upgrade):
        with pytest.raises(StartupError, match=r"9999.*newer version.*Upgrade Reattach"):
            refused(empty_postgresql_url)
    with connected(empty_postgresql_url) as connection:
        assert revision(connection) == "9999"
