"""A server in this process without a port: real records, the API as an ASGI application."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import httpx2
from fastapi.openapi.utils import get_openapi
from letta_client import AsyncLetta
from starlette.types import Message

from reattach.domain.clock import SystemClock
from reattach.domain.ids import DEFAULT_TENANT, TenantId
from reattach.domain.limits import KEY_CACHE_SECONDS
from reattach.engine.base import Engine
from reattach.engine.catalog import Catalog
from reattach.engine.scripted import ScriptedEngine
from reattach.http.app import Api, create_app
from reattach.http.context import Context
from reattach.log.base import Log
from reattach.log.memory import MemoryLog
from reattach.records.records import Records
from reattach.runs.reports.reports import Reports
from reattach.runs.service import RunService
from reattach.settings import Settings
from reattach.tools.base import Toolbox
from reattach.tools.connections import McpServers
from tests.support.records_files import open_records


class TestClock(SystemClock):
    """The system's clock, which a test can move on."""

    __test__ = False

    def __init__(self) -> None:
        self.skipped_seconds = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.skipped_seconds)

    def monotonic_seconds(self) -> float:
        return super().monotonic_seconds() + self.skipped_seconds


@dataclass
class Server:
    context: Context
    app: Api
    clock: TestClock
    client: httpx2.AsyncClient

    async def agent(self, **body: Any) -> dict[str, Any]:
        return await self.made("/v1/agents/", body)

    async def conversation(self, agent_id: str, **body: Any) -> dict[str, Any]:
        return await self.made(f"/v1/conversations/?agent_id={agent_id}", body)

    async def block(self, label: str, value: str = "", **body: Any) -> dict[str, Any]:
        return await self.made("/v1/blocks/", {"label": label, "value": value, **body})

    async def send(self, thread_id: str, text: str, **body: Any) -> dict[str, Any]:
        """Send a message, wait for the answer, and return it as JSON."""
        return await self.made(
            f"/v1/conversations/{thread_id}/messages",
            {"messages": [{"role": "user", "content": text}], "streaming": False, **body},
        )

    async def made(self, path: str, body: Any) -> dict[str, Any]:
        response = await self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def got(self, path: str, **query: Any) -> Any:
        response = await self.client.get(path, params=query or None)
        assert response.status_code == 200, response.text
        return response.json()


@cache
def _default_settings() -> Settings:
    return Settings()


def _settings(directory: Path, **settings: Any) -> Settings:
    """The settings of a server. Reading the defaults takes as long as opening all its stores."""
    if settings:
        return Settings(data_dir=directory, **settings)
    return _default_settings().model_copy(update={"data_dir": directory})


@contextmanager
def api_described_once() -> Iterator[None]:
    """Let all applications have the description of the first, which takes a second to make."""
    described: dict[str, Any] | None = None

    def describe(**options: Any) -> dict[str, Any]:
        nonlocal described
        if described is None:
            described = get_openapi(**options)
        return deepcopy(described)

    with patch("reattach.http.app.get_openapi", describe):
        yield


@asynccontextmanager
async def serving(
    directory: Path,
    *,
    toolbox: Toolbox | None = None,
    mcp_servers: McpServers | None = None,
    engine: Engine | None = None,
    records_url: str | None = None,
    log: Log | None = None,
    **settings: Any,
) -> AsyncIterator[Server]:
    """A server whose default model is the first of ``engine``, or the scripted echo."""
    clock = TestClock()
    async with AsyncExitStack() as stack:
        if records_url is None:
            records = await open_records(directory, clock)
        else:
            records = await Records.open(records_url, clock=clock)
        stack.push_async_callback(records.aclose)
        log = log or MemoryLog()
        stack.push_async_callback(log.aclose)
        catalog = Catalog([ScriptedEngine(clock=clock), *([engine] if engine else [])])
        stack.push_async_callback(catalog.aclose)
        toolbox = toolbox or Toolbox()
        runs = RunService(
            log,
            records,
            catalog,
            clock,
            default_model=engine.models()[0].handle if engine else "scripted/echo",
            toolbox=toolbox,
        )
        await runs.start()
        stack.push_async_callback(runs.aclose)
        options = _settings(directory, **settings)
        reports = Reports(runs, records, clock)
        context = Context(records, catalog, options, clock, runs, reports, toolbox, mcp_servers)
        app = create_app(context)
        client = await stack.enter_async_context(
            httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app),
                base_url="http://localhost",
                follow_redirects=True,
            )
        )
        yield Server(context, app, clock, client)


async def started(server: Server, thread_id: str, text: str, **body: Any) -> str:
    """Send in the background as a client that goes away at once; the id of the run."""
    sent = {"messages": [{"role": "user", "content": text}], "background": True, **body}
    received: list[Message] = [
        {"type": "http.request", "body": json.dumps(sent).encode(), "more_body": False}
    ]
    headers: dict[bytes, bytes] = {}

    async def receive() -> Message:
        return received.pop() if received else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        headers.update(message.get("headers", ()))

    path = f"/v1/conversations/{thread_id}/messages"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 80),
    }
    await server.app(scope, receive, send)
    return headers[b"x-run-id"].decode()


def strict_sdk(url: str, transport: httpx.AsyncBaseTransport | None = None) -> AsyncLetta:
    """The unmodified Python SDK, validating every answer against its types."""
    return AsyncLetta(
        base_url=url,
        api_key="any",
        http_client=httpx.AsyncClient(transport=transport, follow_redirects=True, verify=False),
        _strict_response_validation=True,
    )


def own_text(system: str) -> str:
    """Return the part of a system prompt before the ids of the agent and the conversation."""
    text, separator, _ = system.partition("\n\n<memory_metadata>\n- AGENT_ID: agent-")
    assert separator
    return text


OTHER_TENANT = TenantId("org-11111111-1111-4111-8111-111111111111")


async def with_key(server: Server, tenant: TenantId = DEFAULT_TENANT) -> httpx2.AsyncClient:
    """A client with a new key of the tenant. From then on the server is closed to others."""
    _, secret = await server.context.records.keys.create(tenant, "test")
    server.clock.skipped_seconds += KEY_CACHE_SECONDS
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(server.app),
        base_url="http://localhost",
        follow_redirects=True,
        headers={"Authorization": f"Bearer {secret}"},
    )
