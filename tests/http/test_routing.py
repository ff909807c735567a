"""The way of a request to its operation: the same route and arguments as FastAPI would find."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import request_response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Message, Scope

from reattach.domain.ids import new_run_id
from reattach.http.app import Api
from reattach.http.routes import DeferredRoute, JsonRoute
from reattach.http.routing.index import RouteIndex
from reattach.http.routing.late import LateRoutes
from reattach.http.routing.operations import Operation
from reattach.http.schemas.agent import AgentState
from tests.support.asgi_server import Server

SEGMENTS = ("active", "", "x/y")


@pytest.fixture
def server(shared_server: Server) -> Server:
    return shared_server


def operations(server: Server, method: str = "GET") -> list[tuple[JsonRoute, Operation | None]]:
    built = [one.built for one in server.app.all_routes() if isinstance(one, DeferredRoute)]
    found = [one for one in built if isinstance(one, JsonRoute) and method in (one.methods or ())]
    return [(route, Operation.of(route)) for route in found]


def paths(routes: list[BaseRoute]) -> Iterator[str]:
    for route in routes:
        template = str(getattr(route, "path", "/"))
        for segment in SEGMENTS:
            path = re.sub(r"\{[^}]*\}", segment, template)
            yield from (path, f"{path}/more", path.rpartition("/")[0])


def asked(method: str, path: str, root_path: str = "") -> Scope:
    return {"type": "http", "method": method, "path": path, "root_path": root_path}


def found(routes: list[BaseRoute], scope: Scope) -> BaseRoute | None:
    return next((one for one in routes if one.matches(scope)[0] is Match.FULL), None)


async def test_the_index_finds_the_route_that_comes_first_in_the_router(server: Server) -> None:
    routes = server.app.all_routes()
    index = RouteIndex(APIRouter(routes=routes))
    answered = 0
    for path in dict.fromkeys(paths(routes)):
        for method in ("GET", "POST"):
            expected = found(routes, asked(method, path))
            assert found(index.candidates(path), asked(method, path)) is expected, (method, path)
            answered += expected is not None
    assert answered > len(routes)


async def test_few_routes_are_tried_for_a_path(server: Server) -> None:
    routes = server.app.all_routes()
    index = RouteIndex(APIRouter(routes=routes))
    most = max(len(index.candidates(path)) for path in dict.fromkeys(paths(routes)))
    assert most < 10 < len(routes)


async def test_routes_that_are_imported_late_are_added_once(server: Server) -> None:
    late = LateRoutes(("/v1/admin/",), "reattach.http.api.admin.audit_log")
    router = APIRouter(routes=server.app.routes[:1])
    index = RouteIndex(router, [late])

    async def ask(path: str) -> int:
        scope = {**asked("GET", path), "headers": [], "query_string": b""}
        answers: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            answers.append(message)

        with suppress(HTTPException, RuntimeError):
            await index(scope, receive, send)
        return len(router.routes)

    assert await ask("/v1/nowhere") == 1
    assert await asyncio.gather(*[ask("/v1/admin/nowhere") for _ in range(3)]) == [2, 2, 2]
    assert late.load() == router.routes[1:]
    assert index.candidates("/v1/admin/audit") == late.load()


async def test_only_operations_with_models_as_parameters_are_left_to_fastapi(
    server: Server,
) -> None:
    others = {
        route.path
        for method in ("GET", "POST", "PATCH", "DELETE")
        for route, operation in operations(server, method)
        if operation is None
    }
    assert others == {
        "/v1/conversations/{conversation_id}/stream",
        "/v1/runs/{run_id}/stream",
        "/v1/conversations/{conversation_id}/snapshot",
        "/v1/runs/{run_id}/frames",
        "/v1/admin/keys",
        "/v1/tokens",
    }


QUERIES = (
    "",
    "limit=1&unknown=1",
    "limit=x&after=&before=&order=up&tags=a&tags=b&match_all_tags=1&name=n&query_text=%25",
    "limit=1&limit=2&order=asc&ascending=false&include=agent.tools&include=agent.odd",
    "limit=10001&active=perhaps&background=7&statuses=completed&statuses=failed",
    "statuses=odd&agent_ids=1&agent_id=2&include_return_message_types=x",
    "after=run-1&conversation_id=default&status=completed&status=odd",
    "conversation_id=odd&stop_reason=odd&query=" + "x" * 2000,
    "text=%00",
)


async def answers(server: Server, path: str) -> list[tuple[int, Any, bytes]]:
    given = []
    for query in QUERIES:
        response = await server.client.get(f"{path}?{query}")
        kind = response.headers.get("content-type")
        body = re.sub(rb'"trace_id":"[^"]*"', b"", response.content)
        given.append((response.status_code, kind, body))
    return given


async def test_values_defaults_and_errors_are_those_of_fastapi(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(server.app, Api)
    agent = (await server.agent(name="one", tags=["a", "b"]))["id"]
    conversation = (await server.conversation(agent))["id"]
    await server.send(conversation, "hello")
    ids = {
        "agent_id": [agent, "odd"],
        "conversation_id": [conversation, "odd"],
        "run_id": [new_run_id()],
    }
    changing = ("/metrics", "/v1/admin/processes", "/v1/health", "/v1/admin/runs/{run_id}")
    statuses = set()
    for route, operation in operations(server):
        if operation is None or route.path.startswith(changing) or "probe" in route.path:
            continue
        name = next(iter(re.findall(r"\{(\w+)", route.path)), "")
        for one in ids.get(name, ["odd"]):
            path = re.sub(r"\{[^}]*\}", one, route.path)
            own = await answers(server, path)
            with monkeypatch.context() as patched:
                handler = AsyncExitStackMiddleware(request_response(route.get_route_handler()))
                patched.setattr(route, "app", handler)
                assert await answers(server, path) == own, path
            statuses |= {status for status, _, _ in own}
    assert statuses >= {200, 404, 422}


async def test_the_items_of_a_long_list_are_made_in_a_thread(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await server.agent(name=f"listed {number}", tags=["listed"])
    path = "/v1/agents/?tags=listed"
    threads: list[str] = []
    made: Any = vars(AgentState)["of"].__func__

    def note_thread(cls: Any, *arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return made(cls, *arguments)

    monkeypatch.setattr(AgentState, "of", classmethod(note_thread))
    inline = (await server.client.get(path)).content
    for module in ("readable", "routing.operations"):
        monkeypatch.setattr(f"reattach.http.{module}.MAX_INLINE_ITEMS", 2)
    assert (await server.client.get(path)).content == inline
    assert len(threads) == 6
    assert {name.startswith("asyncio") for name in threads[3:]} == {True}
    assert not any(name.startswith("asyncio") for name in threads[:3])


BODIES = (
    None,
    b"null",
    b"[]",
    b"7",
    b"{}",
    b'{"input": 7, "name": 7, "run_ids": 7, "label": [], "messages": {}}',
    b'{"messages": [{"role": "odd", "content": "x"}, {"role": "user"}], "max_steps": 0}',
    b'{"messages": [], "callback_url": "x", "system": 7, "text": {"unknown": 1}}',
)


async def faults(server: Server, method: str, path: str) -> list[tuple[int, bytes]]:
    """Send each body; return the statuses, and the answers that refuse one."""
    given = []
    for body in BODIES:
        for last_event_id in (None, "1"):
            headers = {} if last_event_id is None else {"last-event-id": last_event_id}
            if body is not None:
                headers["content-type"] = "application/json"
            response = await server.client.request(method, path, content=body, headers=headers)
            content = re.sub(rb'"trace_id":"[^"]*"', b"", response.content)
            given.append((response.status_code, content if response.status_code == 422 else b""))
    return given


async def test_faults_of_bodies_are_those_of_fastapi(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(server.app, Api)
    statuses = set()
    for method in ("POST", "PATCH"):
        for route, operation in operations(server, method):
            if operation is None or operation.body is None or "probe" in route.path:
                continue
            path = re.sub(r"\{[^}]*\}", "odd", route.path)
            own = await faults(server, method, path)
            with monkeypatch.context() as patched:
                handler = AsyncExitStackMiddleware(request_response(route.get_route_handler()))
                patched.setattr(route, "app", handler)
                assert await faults(server, method, path) == own, path
            statuses |= {status for status, _ in own}
    assert statuses >= {200, 400, 404, 422}
