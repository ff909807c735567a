from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings

pytest_plugins = ["tests.postgresql_server", "tests.redis_server"]

# A test may not depend on how fast the machine is.
settings.register_profile("reattach", deadline=None, print_blob=True)
settings.load_profile("reattach")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def blocking_the_event_loop_is_an_error() -> Iterator[None]:
    with blockbuster_ctx("reattach", excluded_modules=["reattach.testing"]) as blocking:
        # A row by its key is sooner read than a thread is asked for it; see the module.
        for name in ("sqlite3.Connection.execute", "sqlite3.Cursor.fetchall"):
            blocking.functions[name].can_block_in("reattach/records/glance.py", "rows")
        yield


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
