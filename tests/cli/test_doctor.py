"""``reattach doctor`` finds faults and names their remedies."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from reattach.diagnostics import Level
from reattach.extras import install_command
from reattach.log.redis import checks as redis_checks
from reattach.records.database import checks as database_checks
from reattach.server import datadir
from reattach.testing.programs.postgresql import PostgresqlServer
from reattach.testing.programs.redis import RedisServer
from tests.support.commands import Ended, reattach_here
from tests.support.redis_server import RedisCluster

SERVER = {"settings", "models", "network", "web pages", "callbacks", "tools"}
POSTGRESQL = {
    "database reachable",
    "database version",
    "database latency",
    "database role",
    "database connections",
    "database commits",
    "database clock",
    "database notices",
    "database schema",
}
REDIS = {
    "redis reachable",
    "redis latency",
    "redis version",
    "redis role",
    "redis persistence",
    "redis eviction",
    "redis log",
    "redis pub/sub",
}


class Report:
    """The findings of the doctor by check: the worst one of each check."""

    def __init__(self, ended: Ended) -> None:
        assert ended.err == ""
        assert "sesame" not in ended.out
        self.status = ended.status
        said = json.loads(ended.out)
        self.levels: dict[str, Level] = {}
        self.text: dict[str, str] = {}
        for finding in sorted(
            said["findings"], key=lambda one: ["ok", "warning", "wrong"].index(one["level"])
        ):
            self.levels[finding["what"]] = finding["level"]
            self.text[finding["what"]] = f"{finding['detail']} | {finding['remedy']}"
            assert finding["remedy"] or finding["level"] == "ok"
        assert self.status == (1 if said["wrong"] else 0)

    @property
    def wrong(self) -> set[str]:
        return {what for what, level in self.levels.items() if level == "wrong"}

    @property
    def warned(self) -> set[str]:
        return {what for what, level in self.levels.items() if level == "warning"}


def diagnose(database_url: str, log_url: str, **variables: str) -> Report:
    ended = reattach_here(
        "doctor",
        "--json",
        REATTACH_DATABASE_URL=database_url,
        REATTACH_LOG_URL=log_url,
        **variables,
    )
    return Report(ended)


def tcp(server: RedisServer, user: str = "") -> str:
    host, port = server.address
    return f"redis://{user}{host}:{port}"


@contextmanager
def configured(server: RedisServer, name: str, value: str, normal: str) -> Iterator[None]:
    assert server.command("CONFIG", "SET", name, value) == b"+OK\r\n"
    try:
        yield
    finally:
        server.command("CONFIG", "SET", name, normal)


def test_all_is_well_with_stores_that_are_as_they_should_be(
    postgresql_url: str, redis_server: RedisServer
) -> None:
    report = diagnose(postgresql_url, redis_server.url)
    assert set(report.levels) == {*SERVER, *POSTGRESQL, *REDIS}
    assert (report.wrong, report.warned, report.status) == (set(), set(), 0)
    assert redis_server.command("KEYS", "*doctor*") == b"*0\r\n"

    people = reattach_here(
        "doctor", "--database-url", postgresql_url, "--log-url", tcp(redis_server)
    )
    assert people.status == 0
    assert "ok      redis persistence     appendonly yes, appendfsync everysec\n" in people.out
    assert people.out.endswith("23 ok, 0 warnings, 0 wrong\n")


def test_wrong_settings_are_found(postgresql_url: str, redis_server: RedisServer) -> None:
    alone = Report(reattach_here("doctor", "--json", REATTACH_DATABASE_URL=postgresql_url))
    assert alone.wrong == {"settings"}
    assert "REATTACH_LOG_URL" in alone.text["settings"]
    assert set(alone.levels) >= POSTGRESQL

    open_to_all = diagnose(postgresql_url, redis_server.url, REATTACH_HOST="0.0.0.0")
    assert open_to_all.wrong == {"network"}
    assert "reattach keys create" in open_to_all.text["network"]


def test_the_doctor_reports_an_unusable_database_with_the_cause(
    postgresql_server: PostgresqlServer, redis_server: RedisServer
) -> None:
    host, port = postgresql_server.address
    for url, reason, remedy in (
        (f"postgresql://postgres:sesame@{host}:{port}/x", "password authentication", "password"),
        (postgresql_server.url("nowhere"), '"nowhere" does not exist', "CREATE DATABASE"),
        (f"postgresql://ada:sesame@{host}:1/x", "refused", "running"),
    ):
        report = diagnose(url, redis_server.url)
        assert report.wrong == {"database reachable"}
        assert reason in report.text["database reachable"]
        assert remedy in report.text["database reachable"].partition(" | ")[2]
    assert set(report.levels) >= REDIS


def test_a_database_that_is_not_as_it_should_be_is_found(
    postgresql_server: PostgresqlServer, redis_server: RedisServer
) -> None:
    with psycopg.connect(postgresql_server.url(), autocommit=True) as connection:
        connection.execute(
            "CREATE DATABASE plain ENCODING 'SQL_ASCII' TEMPLATE template0"
            " LOCALE_PROVIDER libc LOCALE 'C'"
        )
        connection.execute("ALTER DATABASE plain SET synchronous_commit = off")
        connection.execute("ALTER DATABASE plain SET default_transaction_read_only = on")
    report = diagnose(postgresql_server.url("plain"), redis_server.url, REATTACH_WORKERS="50")

    assert report.wrong == {
        "database version",
        "database role",
        "database connections",
        "database schema",
    }
    assert report.warned == {"database commits"}
    assert "SQL_ASCII" in report.text["database version"]
    assert "reattach db upgrade" in report.text["database schema"]


def test_notices_that_do_not_arrive_and_a_clock_that_is_off_are_found(
    postgresql_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As behind a pooler in transaction mode: the notice goes where nobody listens.
    monkeypatch.setattr(database_checks, "_NOTIFY", "SELECT pg_notify(:channel || '-', :payload)")
    monkeypatch.setattr(database_checks, "CHECK_SECONDS", 2.0)
    later = SimpleNamespace(time=lambda: time.time() + 5, perf_counter=time.perf_counter)
    monkeypatch.setattr(database_checks, "time", later)

    report = diagnose(postgresql_url, redis_server.url)

    assert report.wrong == {"database notices"}
    assert "session mode" in report.text["database notices"]
    assert report.warned == {"database clock"}
    assert "5.0 s ahead" in report.text["database clock"]


def test_the_doctor_checks_persistence_and_eviction_of_redis(
    postgresql_url: str, redis_server: RedisServer
) -> None:
    with configured(redis_server, "appendonly", "no", "yes"):
        report = diagnose(postgresql_url, redis_server.url)
        assert (report.wrong, report.warned, report.status) == (set(), {"redis persistence"}, 0)
        assert "no snapshots" in report.text["redis persistence"]
        assert "loses everything" in report.text["redis persistence"]
        with configured(redis_server, "save", "900 1", ""):
            assert (
                "snapshot" in diagnose(postgresql_url, redis_server.url).text["redis persistence"]
            )
    with configured(redis_server, "appendfsync", "no", "everysec"):
        assert diagnose(postgresql_url, redis_server.url).warned == {"redis persistence"}
    with configured(redis_server, "maxmemory", "1gb", "0"):
        assert diagnose(postgresql_url, redis_server.url).warned == set()
        with configured(redis_server, "maxmemory-policy", "allkeys-lru", "noeviction"):
            report = diagnose(postgresql_url, redis_server.url)
            assert report.wrong == {"redis eviction"}
            assert "noeviction" in report.text["redis eviction"]


def test_the_doctor_names_missing_redis_permissions(
    postgresql_url: str, redis_server: RedisServer
) -> None:
    report = diagnose(postgresql_url, tcp(redis_server, "ada:sesame@"))
    assert report.wrong == {"redis reachable"}
    assert "invalid username-password pair" in report.text["redis reachable"]

    rights = "~reattach:* &reattach:* +@all -@dangerous +info"
    for missing, instead, wrong, warned in (
        ("", "", set(), set()),
        ("~reattach:*", "~other:*", {"redis log"}, set()),
        ("&reattach:*", "", {"redis log", "redis pub/sub"}, set()),
        ("+@all", "+@all -@scripting", {"redis log"}, set()),
        (
            "+info",
            "-info",
            set(),
            {"redis version", "redis role", "redis persistence", "redis eviction"},
        ),
    ):
        words = rights.replace(missing, instead).split()
        made = redis_server.command("ACL", "SETUSER", "eve", "reset", "on", ">sesame", *words)
        assert made == b"+OK\r\n"
        report = diagnose(postgresql_url, tcp(redis_server, "eve:sesame@"))
        assert (report.wrong, report.warned) == (wrong, warned), report.text
        for what in wrong | warned:
            assert "ACL SETUSER" in report.text[what]


def test_a_replica_and_missing_replicas_are_found(
    postgresql_url: str, redis_server: RedisServer
) -> None:
    waiting = diagnose(postgresql_url, f"{tcp(redis_server)}?wait_replicas=1")
    assert waiting.wrong == {"redis replicas", "redis log"}
    replica = RedisServer("--replicaof", "127.0.0.1", str(redis_server.port))
    try:
        report = diagnose(postgresql_url, replica.url)
        assert report.wrong == {"redis role", "redis log"}
        assert "redis+sentinel://" in report.text["redis role"]
    finally:
        replica.close()


def test_the_doctor_reports_a_dead_or_paused_redis_in_bounded_time(
    postgresql_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_checks, "CHECK_SECONDS", 0.5)
    assert diagnose(postgresql_url, "redis://:sesame@127.0.0.1:1").wrong == {"redis reachable"}
    assert diagnose(postgresql_url, "redis://:ses/ame@x").wrong == {"redis reachable"}
    redis_server.pause()
    try:
        report = diagnose(postgresql_url, redis_server.url)
    finally:
        redis_server.resume()
    assert report.wrong == {"redis reachable"}
    assert "does not answer in time" in report.text["redis reachable"]


def test_each_node_of_a_cluster_is_looked_at(postgresql_url: str) -> None:
    cluster = RedisCluster()
    try:
        people = reattach_here("doctor", "--database-url", postgresql_url, "--log-url", cluster.url)
    finally:
        cluster.close()
    assert people.status == 0, people.out
    assert "state ok, slots assigned: 16384 of 16384" in people.out
    for node in cluster.nodes:
        assert f"127.0.0.1:{node.port}: appendonly no, no snapshots" in people.out
    assert people.out.endswith("2 warnings, 0 wrong\n")


def test_a_data_directory_is_looked_at_and_not_made(tmp_path: Path) -> None:
    place = tmp_path / "data"
    report = Report(reattach_here("doctor", "--json", "--data-dir", str(place)))
    assert report.levels == dict.fromkeys(
        (*SERVER, "data directory", "disk space", "data owner"), "ok"
    )
    assert "does not exist yet" in report.text["data directory"]
    assert not place.exists()

    with datadir.lock(place):
        owned = Report(reattach_here("doctor", "--json", "--data-dir", str(place)))
    assert "the server of process" in owned.text["data owner"]

    file = tmp_path / "file"
    file.write_text("in the way")
    unreal = Report(reattach_here("doctor", "--json", "--data-dir", "/proc/nope"))
    assert unreal.wrong == {"data directory"}
    assert "/proc is not writable" in unreal.text["data directory"]
    in_the_way = Report(reattach_here("doctor", "--json", "--data-dir", str(file / "data")))
    assert in_the_way.wrong == {"data directory"}

    workers = Report(
        reattach_here("doctor", "--json", REATTACH_DATA_DIR=str(place), REATTACH_WORKERS="2")
    )
    assert workers.wrong == {"settings"}


def test_callbacks_and_tools_are_looked_at(tmp_path: Path) -> None:
    def diagnose_with(**variables: str) -> Report:
        directory = str(tmp_path)
        return Report(reattach_here("doctor", "--json", REATTACH_DATA_DIR=directory, **variables))

    report = diagnose_with(
        REATTACH_TOOLS="tests.support.tool_functions:greet,tests.support.tool_functions:add",
    )
    assert report.wrong == report.warned == set()
    assert report.text["callbacks"].startswith("signed, to public addresses only")
    assert report.text["tools"].startswith("functions: add, greet")
    private = diagnose_with(
        REATTACH_CALLBACKS_TO_PRIVATE="true",
        REATTACH_HOST="0.0.0.0",
    )
    assert "callbacks" in private.warned
    assert "REATTACH_CALLBACKS_TO_PRIVATE" in private.text["callbacks"]
    for name, reason, remedy in (
        ("nowhere.tools:f", "ModuleNotFoundError", "Install its package"),
        ("tests.support.tool_functions:nothing", "AttributeError", "Install its package"),
        ("tests.support.tool_functions", "does not have the form", "REATTACH_TOOLS"),
        ("tests.support.tool_functions:everything", "positional-only", "Give each parameter a"),
        (
            "tests.support.tool_functions:add,tests.unit.test_tools:functions.add",
            "Two tools have the name add",
            "Rename one of them, or remove it from the settings.",
        ),
    ):
        report = diagnose_with(REATTACH_TOOLS=name)
        assert report.wrong == {"tools"}, name
        assert reason in report.text["tools"]
        assert remedy in report.text["tools"]


def test_the_doctor_connects_to_every_mcp_server_and_reports_failures(tmp_path: Path) -> None:
    config = tmp_path / "reattach.toml"
    config.write_text(
        f"""
data_dir = "{tmp_path}"

[mcp.plain]
command = "{sys.executable}"
args = ["-m", "tests.support.plain_mcp_server"]
cwd = "{Path(__file__).parents[2]}"
env = {{ KEY = "sesame" }}

[mcp.gone]
command = "{sys.executable}"
args = ["-c", "import sys; sys.exit('sesame does not open')"]
env = {{ KEY = "sesame" }}

[mcp.mute]
command = "{sys.executable}"
args = ["-c", "import time; time.sleep(60)"]
start_seconds = 0.5

[mcp.chatty]
command = "{sys.executable}"
args = ["-c", "print('it is sesame')"]
env = {{ KEY = "sesame" }}

[mcp.missing]
command = "{tmp_path}/no-such-program"

[mcp.refused]
url = "http://user:sesame@127.0.0.1:1/mcp?key=sesame"

[mcp.keyless]
url = "http://127.0.0.1:1/mcp"
bearer_token_env = "NO_SUCH_VARIABLE"
""",
        encoding="utf-8",
    )
    report = Report(reattach_here("doctor", "--json", "--config", str(config)))
    bad = ("gone", "mute", "chatty", "missing", "refused", "keyless")
    assert report.wrong == {f"mcp {name}" for name in bad}
    assert ": plain 1.2.3, protocol " in report.text["mcp plain"]
    assert " 2 tools, in " in report.text["mcp plain"]
    assert "it ended, and said: *** does not open" in report.text["mcp gone"]
    assert "no connection within 0.5 s" in report.text["mcp mute"]
    assert "its command cannot be run" in report.text["mcp missing"]
    assert "no connection (ConnectError)" in report.text["mcp refused"]
    assert "The environment variable NO_SUCH_VARIABLE is not set" in report.text["mcp keyless"]
    assert "[mcp.gone] in the settings" in report.text["mcp gone"]


def test_an_mcp_server_without_its_package_or_with_a_wrong_name_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "reattach.tools.mcp", None)

    def diagnose_with(name: str) -> Report:
        server = json.dumps({name: {"command": "serve"}})
        directory = str(tmp_path)
        ended = reattach_here("doctor", "--json", REATTACH_DATA_DIR=directory, REATTACH_MCP=server)
        return Report(ended)

    report = diagnose_with("files")
    assert report.wrong == {"mcp"}
    assert install_command("mcp") in report.text["mcp"]
    assert "is not valid" in diagnose_with("my files").text["mcp"]


def test_a_full_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free_bytes, level in ((1 << 20, "wrong"), (1 << 28, "warning"), (1 << 40, "ok")):
        usage = SimpleNamespace(free=free_bytes)
        monkeypatch.setattr("shutil.disk_usage", lambda _, usage=usage: usage)
        report = Report(reattach_here("doctor", "--json", "--data-dir", str(tmp_path)))
        assert report.levels["disk space"] == level


def test_a_pair_of_local_stores_is_wrong_and_not_made(tmp_path: Path) -> None:
    records, events = f"sqlite:///{tmp_path}/records.db", f"sqlite:{tmp_path}/events.db"
    assert "settings" in diagnose(records, events).wrong
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_others_can_read_is_reported_with_a_command_that_repairs_it(
    tmp_path: Path,
) -> None:
    """D9: files that others may read are wrong, a directory that they may list is a warning."""
    place = tmp_path / "data"
    place.mkdir(mode=0o755)
    datadir.make(place)
    report = Report(reattach_here("doctor", "--json", "--data-dir", str(place)))
    assert report.levels["data access"] == "warning"
    datadir.records_file(place).chmod(0o640)
    report = Report(reattach_here("doctor", "--json", "--data-dir", str(place)))
    assert report.levels["data access"] == "wrong"
    assert "records.db" in report.text["data access"]
    for path in (datadir.records_file(place), place):
        path.chmod(path.stat().st_mode & ~0o077)
    report = Report(reattach_here("doctor", "--json", "--data-dir", str(place)))
    assert report.levels["data access"] == "ok"
