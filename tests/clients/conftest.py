"""A server in its own process, and the official SDKs as its clients over sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.support.javascript_client import require_client
from tests.support.own_clients import JavaScriptClient, OwnClient, python_clients
from tests.support.python_sdk import AsyncReader, Reader
from tests.support.threads import Thread, Threads, raw_client

SCRIPTED = {"REATTACH_DEFAULT_MODEL": "scripted/echo", "REATTACH_LOG_LEVEL": "warning"}


def scripted_server(data_dir: Path, **environment: str) -> ServerProcess:
    """Create a server with the scripted model, not started yet."""
    return ServerProcess(data_dir, arguments=["--scripted"], environment=SCRIPTED | environment)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for all tests. Each test creates its own agents and conversations."""
    with scripted_server(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture(scope="package")
def pinging_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that sends a ping after a tenth of a second of silence."""
    directory = tmp_path_factory.mktemp("pinging")
    with scripted_server(directory, REATTACH_PING_INTERVAL_SECONDS="0.1") as process:
        yield process


@pytest.fixture
def relay(server: ServerProcess) -> Iterator[Relay]:
    """A relay to the server for one test, which can cut its connections."""
    with Relay(server.address) as relay:
        yield relay


@pytest.fixture(scope="package")
def threads(server: ServerProcess) -> Iterator[Threads]:
    with raw_client(server.url) as raw:
        yield Threads(raw)


@pytest.fixture
def conversation(threads: Threads) -> Thread:
    """A new conversation of a new agent."""
    return threads.conversation()


@pytest.fixture
def default_thread(threads: Threads) -> Thread:
    """The default conversation of a new agent."""
    return threads.default_thread()


@pytest.fixture
def reader(relay: Relay) -> Iterator[Reader]:
    """The synchronous SDK behind the relay."""
    with Reader(relay.url) as reader:
        yield reader


@pytest.fixture
async def new_reader(relay: Relay) -> AsyncIterator[Callable[[], AsyncReader]]:
    """Creates asynchronous SDKs behind the relay."""
    async with AsyncExitStack() as stack:

        def make() -> AsyncReader:
            reader = AsyncReader(relay.url)
            stack.push_async_callback(reader.aclose)
            return reader

        yield make


@pytest.fixture(scope="module", params=["async", "sync", "javascript"])
def client(request: pytest.FixtureRequest) -> Iterator[OwnClient]:
    if request.param != "javascript":
        yield python_clients()[request.param]()
        return
    with JavaScriptClient(require_client()) as process:
        yield process
