from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings

from reattach.engine.providers import VARIABLES as PROVIDER_VARIABLES
from reattach.testing.programs.forking import Forking
from reattach.testing.programs.server import ServerProcess

pytest_plugins = ["tests.support.postgresql_server", "tests.support.redis_server"]

# A test may not depend on how fast the machine is.
settings.register_profile("reattach", deadline=None, print_blob=True)
settings.register_profile("fast", settings.get_profile("reattach"), max_examples=10)
settings.register_profile("long", settings.get_profile("reattach"), max_examples=1000)
settings.load_profile("reattach")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def no_key_of_a_provider_is_in_the_environment() -> Iterator[None]:
    """A developer's own keys are neither used nor sent anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PROVIDER_VARIABLES:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def blocking_the_event_loop_is_an_error() -> Iterator[None]:
    with blockbuster_ctx("reattach", excluded_modules=["reattach.testing"]) as blocking:
        # A row by its key is sooner read than a thread is asked for it; see the module.
        for name in ("sqlite3.Connection.execute", "sqlite3.Cursor.fetchall"):
            blocking.functions[name].can_block_in("reattach/records/database/prepared.py", "rows")
        yield


@pytest.fixture(scope="session", autouse=True)
def servers_are_forks() -> Iterator[None]:
    """A server process costs the tests no imports. ``tests/docs`` starts it as users do."""
    ServerProcess.forking = Forking()
    yield
    ServerProcess.forking.close()
    ServerProcess.forking = None


STARTS_A_PROGRAM = {"postgresql_databases", "postgresql_url", "empty_postgresql_url", "redis"}
"""The fixtures that start a PostgreSQL or a Redis."""

ON_A_PORT = {"live", "quick_pings", "letta", "place", "api", "filled"}
"""The fixtures that serve HTTP at a port, or that fill a server with many rows."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help="leave out the tests that start programs, serve at a port, or try very many inputs",
    )


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # Until everything is imported, which stays: see pytest_collection_finish.
    if config.getoption("--fast"):
        settings.load_profile("fast")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--fast"):
        return
    config.hook.pytest_deselected(items=[item for item in items if _is_slow(item)])
    items[:] = [item for item in items if not _is_slow(item)]


def _is_slow(item: pytest.Item) -> bool:
    chosen = getattr(item, "callspec", None)
    named = {"postgresql", "redis"} & set(re.split(r"[\s-]", chosen.id)) if chosen else set()
    wanted = (STARTS_A_PROGRAM | ON_A_PORT) & set(getattr(item, "fixturenames", ()))
    return bool(named or wanted or item.get_closest_marker("slow"))


def pytest_collection_finish() -> None:
    """Leave the modules and the list of tests out of every later garbage collection."""
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what each part of the tests took; several may have run at a time."""
    seconds: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                part = "/".join(report.nodeid.split("/")[:2])
                seconds[part] += report.duration  # type: ignore[assignment]
                tests[part] += report.when == "call"
    terminalreporter.section("time of each part")
    for part, taken in seconds.most_common():
        terminalreporter.write_line(f"{taken:7.1f} s  {tests[part]:5}  {part}")
