"""``reattach db``, and a server's errors about an unusable database."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from reattach.records.database import migrations
from reattach.testing.programs.postgresql import PostgresqlServer
from reattach.testing.programs.redis import RedisServer
from tests.support.commands import Ended, reattach, reattach_here

HEAD = migrations.HEAD


def assert_refuses(ended: Ended, *said: str) -> None:
    """One line and status 1, without secret or trace."""
    lines = [line for line in ended.err.splitlines() if "[info" not in line]
    assert len(lines) == 1, ended.err
    assert ended.status == 1
    assert ended.out == ""
    for word in said:
        assert word in lines[0]
    assert "sesame" not in ended.err
    assert "Traceback" not in ended.err


def test_concurrent_upgrades_migrate_a_database_once_and_status_reports_it(
    empty_postgresql_url: str,
) -> None:
    url = {"REATTACH_DATABASE_URL": empty_postgresql_url}
    before = reattach_here("db", "status", **url)
    assert before.status == 1
    assert before.out == f"present\tno schema\nneeded\t{HEAD}\n"
    assert "reattach db upgrade" in before.err

    with ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(lambda _: reattach("db", "upgrade", **url), range(2)))

    assert [one.status for one in ended] == [0, 0]
    assert sorted(one.out for one in ended) == [
        f"The database is up to date: revision {HEAD}.\n",
        f"Upgraded the database: no schema -> {HEAD}.\n",
    ]
    after = reattach_here("db", "status", "--database-url", empty_postgresql_url)
    assert (after.status, after.out) == (0, f"present\t{HEAD}\nneeded\t{HEAD}\n")


def test_the_schema_of_a_data_directory_is_looked_at_without_making_it(tmp_path: Path) -> None:
    found = reattach_here("db", "status", "--data-dir", str(tmp_path))
    assert (found.status, found.out) == (1, f"present\tno schema\nneeded\t{HEAD}\n")
    assert f"`reattach db upgrade --data-dir {tmp_path}`" in found.err
    assert not (tmp_path / "records.db").exists()


def test_a_schema_of_a_newer_version_is_reported_and_not_changed(postgresql_url: str) -> None:
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        try:
            status = reattach_here("db", "status", "--database-url", postgresql_url)
            upgrade = reattach_here("db", "upgrade", "--database-url", postgresql_url)
        finally:
            connection.execute(f"UPDATE alembic_version SET version_num = '{HEAD}'".encode())
    assert status.status == 1
    assert status.out.startswith("present\t9999\n")
    assert "newer version of Reattach" in status.err
    assert_refuses(upgrade, "9999", "newer version of Reattach")


def test_keys_are_made_in_the_database_of_the_url(postgresql_url: str) -> None:
    made = reattach_here("keys", "create", "app", "--database-url", postgresql_url)
    assert made.status == 0
    listed = reattach_here("keys", "list", REATTACH_DATABASE_URL=postgresql_url)
    assert "\tapp\t" in listed.out


def test_a_server_with_an_unusable_database_exits_with_one_line_that_names_the_cause(
    postgresql_server: PostgresqlServer, redis_server: RedisServer
) -> None:
    def serve(database_url: str, run: Callable[..., Ended] = reattach_here) -> Ended:
        log_url = {"REATTACH_LOG_URL": redis_server.url}
        return run("serve", "--port", "0", REATTACH_DATABASE_URL=database_url, **log_url)

    host, port = postgresql_server.address
    assert_refuses(serve(postgresql_server.url()), "no schema yet", "reattach db upgrade")
    assert_refuses(
        serve(f"postgresql://postgres:sesame@{host}:{port}/postgres", reattach),
        f"postgresql://postgres:***@{host}:{port}/postgres",
        "password authentication failed",
    )
    assert_refuses(
        serve(postgresql_server.url("nowhere")), '"nowhere" does not exist', "CREATE DATABASE"
    )
    assert_refuses(serve(f"postgresql://ada:sesame@{host}:1/x"), "refused", "REATTACH_DATABASE_URL")


@pytest.mark.parametrize(
    ("log_url", "said"),
    [
        ("redis://:sesame@127.0.0.1:1", "refused"),
        ("redis://ada:sesame@{address}", "invalid username-password pair"),
        ("redis://ada:ses/ame@{address}", "URL of Redis is not valid"),
    ],
)
def test_a_server_with_an_unusable_log_exits_with_one_line_that_names_the_cause(
    postgresql_url: str, redis_server: RedisServer, log_url: str, said: str
) -> None:
    host, port = redis_server.address
    url = log_url.format(address=f"{host}:{port}")
    ended = reattach_here(
        "serve", "--port", "0", REATTACH_DATABASE_URL=postgresql_url, REATTACH_LOG_URL=url
    )
    assert_refuses(ended, said)
    assert "ame@" not in ended.err


def test_a_server_with_one_url_or_a_wrong_file_ends_with_one_line(tmp_path: Path) -> None:
    alone = reattach_here("serve", "--port", "0", REATTACH_LOG_URL="redis://:sesame@log")
    assert_refuses(alone, "REATTACH_DATABASE_URL", "cannot read")
    file = tmp_path / "reattach.toml"
    file.write_text("prot = 8283")
    assert_refuses(reattach_here("serve", "--config", str(file)), "'prot' (did you mean port?)")
