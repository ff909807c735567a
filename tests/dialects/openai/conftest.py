from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.dialects.openai.clients import Cutting, openai_client
from tests.support.live_server import LiveServer, listening


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    tools = tuple(f"tests.support.tool_functions:{name}" for name in ("add", "deploy"))
    async with listening(tmp_path_factory.mktemp("live"), tools=tools) as live:
        yield live


@pytest.fixture
async def agent(live: LiveServer) -> str:
    """An agent with tools, whose gate is open."""
    made: str = (await live.agent(tools=["add", "deploy"]))["id"]
    live.gates.open(made)
    return made


@pytest.fixture
async def network() -> AsyncIterator[Cutting]:
    async with Cutting() as network:
        yield network


@pytest.fixture
async def client(live: LiveServer, network: Cutting) -> AsyncIterator[object]:
    async with openai_client(live.url, network) as client:
        yield client
