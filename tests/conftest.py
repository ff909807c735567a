from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings

pytest_plugins = ["tests.postgresql_server"]

# A test may not depend on how fast the machine is.
settings.register_profile("reattach", deadline=None, print_blob=True)
settings.load_profile("reattach")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def blocking_the_event_loop_is_an_error() -> Iterator[None]:
    with blockbuster_ctx("reattach", excluded_modules=["reattach.testing"]):
        yield
