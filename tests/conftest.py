from __future__ import annotations

import gc
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings

from reattach.engine.providers import VARIABLES as PROVIDER_VARIABLES
from reattach.server.tune_gc import tune_gc
from tests.support.compiled_statements import statements_compiled_once
from tests.support.forking import FORKING, servers_forked

pytest_plugins = [
    "tests.support.forked_workers",
    "tests.support.postgresql_server",
    "tests.support.redis_server",
]

AUTHORITY = Path(__file__).parent / "support" / "authority.pem"
"""The certificate authority that is trusted in place of the system's.

A client reads its authorities whatever it connects to, and 140 of them take longer than most tests.
"""

# No test may depend on the speed of the machine.
settings.register_profile("reattach", deadline=None, print_blob=True)
settings.register_profile("fast", settings.get_profile("reattach"), max_examples=10)
settings.register_profile("long", settings.get_profile("reattach"), max_examples=1000)
settings.load_profile("reattach")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def no_key_of_a_provider_is_in_the_environment() -> Iterator[None]:
    """Remove a developer's own keys, so that no test uses or sends them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PROVIDER_VARIABLES:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def blocking_the_event_loop_is_an_error() -> Iterator[None]:
    with blockbuster_ctx("reattach", excluded_modules=["reattach.testing"]) as blocking:
        # Reading a row by its key costs less than a thread: see docs/decisions/0020.
        for name in ("sqlite3.Connection.execute", "sqlite3.Cursor.fetchall"):
            one = blocking.functions[name]
            one.can_block_in(
                "reattach/records/database/database.py",
                ("_read_in_loop", "run_at_once", "version_at_once"),
            )
            # So does reading a slice of a run: see docs/decisions/0023.
            one.can_block_in("reattach/log/sqlite/read_pool.py", ("at_once", "try_at_once"))
            # A short transaction does too: see docs/decisions/0028.
            one.can_block_in("reattach/records/database/sqlite.py", "attempt")
            # A small commit costs less than a thread: see docs/decisions/0024.
            one.can_block_in("reattach/log/sqlite/writer.py", "_commit_at_once")
        yield


@pytest.fixture(scope="session", autouse=True)
def databases_share_compiled_statements() -> Iterator[None]:
    with statements_compiled_once():
        yield


@pytest.fixture
def nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count no work of a busy machine as that of a slow disk, in the records on SQLite."""
    from reattach.records.database import sqlite

    monkeypatch.setattr(sqlite, "COMMIT_SECONDS", 60.0)
    monkeypatch.setattr(sqlite, "SHORT_SECONDS", 60.0)


@pytest.fixture(scope="session", autouse=True)
def servers_are_forks() -> Iterator[None]:
    with servers_forked(FORKING):
        yield


STARTS_A_PROGRAM = {"postgresql_databases", "postgresql_url", "empty_postgresql_url", "redis"}
"""Fixtures that start a PostgreSQL or a Redis."""

ON_A_PORT = {"live", "quick_pings", "letta", "place", "api", "filled"}
"""Fixtures that serve HTTP on a port or fill a server with many rows."""


_SLOW_FOLDERS = (
    *("docs", "applications", "cluster", "recovery", "cli", "engines", "meta"),
    *("deploy", "browser", "bench", "clients", "http"),
)
SLOWEST_FIRST = {f"tests/{folder}": rank for rank, folder in enumerate(_SLOW_FOLDERS)}
"""Ranks of the folders that run first, so that no process is left with a slow one at the end."""


def _folder(node_id: str) -> str:
    """Return the folder of a test below ``tests``: ``tests/http``."""
    return "/".join(node_id.split("/")[:2])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help="skip tests that start programs, serve on a port, or try very many inputs",
    )
    parser.addoption(
        "--chaos",
        action="store_true",
        help="run the tests of tests/cluster/test_chaos.py for 60 seconds with 50 runs at once",
    )
    parser.addoption(
        "--every-event",
        action="store_true",
        help="interrupt runs after every event, where only chosen ones are tried otherwise",
    )


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # Until pytest_collection_finish, when everything is imported.
    os.environ["SSL_CERT_FILE"] = str(AUTHORITY)
    if config.getoption("--fast"):
        settings.load_profile("fast")
    elif config.getoption("--workers") and not config.option.collectonly:
        FORKING.begin()  # For all workers; its imports run beside the collection.
        os.register_at_fork(after_in_child=FORKING.let_go)


def pytest_unconfigure() -> None:
    FORKING.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOWEST_FIRST.get(_folder(item.nodeid), len(SLOWEST_FIRST)))
    if not config.getoption("--fast"):
        return
    config.hook.pytest_deselected(items=[item for item in items if _is_slow(item)])
    items[:] = [item for item in items if not _is_slow(item)]


def _is_slow(item: pytest.Item) -> bool:
    chosen = getattr(item, "callspec", None)
    named = {"postgresql", "redis"} & set(re.split(r"[\s-]", chosen.id)) if chosen else set()
    wanted = (STARTS_A_PROGRAM | ON_A_PORT) & set(getattr(item, "fixturenames", ()))
    listens = isinstance(item, pytest.Function) and "listening" in item.function.__code__.co_names
    return bool(named or wanted or listens or item.get_closest_marker("slow"))


def pytest_collection_finish() -> None:
    """Collect garbage as a server does, without the modules and the list of tests."""
    tune_gc()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the time of each folder of tests, summed over processes."""
    seconds: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                part = _folder(report.nodeid)
                seconds[part] += report.duration  # type: ignore[assignment]
                tests[part] += report.when == "call"
    terminalreporter.section("time of each part")
    for part, taken in seconds.most_common():
        terminalreporter.write_line(f"{taken:7.1f} s  {tests[part]:5}  {part}")
