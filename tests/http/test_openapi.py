from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx2
import pytest

from reattach.http.app import create_app
from reattach.http.routes import DeferredRoute
from tests.support.asgi_server import Server
from tests.support.live_server import WAIT_SECONDS
from tests.support.stores import eventually

# Named by the API that the SDKs are made from, or by its recorded description.
OPERATIONS = {
    "retrieve_conversation_stream": ("post", "/v1/conversations/{conversation_id}/stream"),
    "send_conversation_message": ("post", "/v1/conversations/{conversation_id}/messages"),
    "list_conversation_messages": ("get", "/v1/conversations/{conversation_id}/messages"),
    "list_agents": ("get", "/v1/agents/"),
    "create_agent": ("post", "/v1/agents/"),
    "retrieve_run": ("get", "/v1/runs/{run_id}"),
}


@pytest.fixture
def server(shared_server: Server) -> Server:
    return shared_server


def operations(description: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]


async def test_the_description_is_served_and_no_page_of_another_site_with_it(
    server: Server,
) -> None:
    assert await server.got("/openapi.json") == server.app.openapi()
    for path in ("/docs", "/redoc"):
        assert (await server.client.get(path)).status_code == 404


async def test_live_streams_do_not_wait_while_the_description_is_made(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = []

    def describe(**_: Any) -> dict[str, Any]:
        makers.append(threading.current_thread())
        assert release.wait(WAIT_SECONDS)
        return {"paths": {}}

    monkeypatch.setattr("reattach.http.app.get_openapi", describe)
    release = threading.Event()
    app = create_app(server.app.state.context)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        asked = [asyncio.create_task(client.get("/openapi.json")) for _ in range(3)]
        await eventually(lambda: bool(makers))
        assert (await client.get("/v1/health")).status_code == 200
        release.set()
        answers = [await one for one in asked]
    assert [one.json()["paths"] for one in answers] == [{}] * 3
    assert len(makers) == 1


async def test_the_description_names_the_place_where_the_application_is_mounted(
    server: Server,
) -> None:
    transport = httpx2.ASGITransport(server.app, root_path="/below")
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        described = (await client.get("/below/openapi.json")).json()
    assert described["servers"] == [{"url": "/below"}]
    assert "servers" not in await server.got("/openapi.json")


async def test_routes_are_built_once_for_all_applications(server: Server) -> None:
    context = server.app.state.context
    first, second = (
        [route for route in create_app(context).all_routes() if isinstance(route, DeferredRoute)]
        for _ in range(2)
    )
    assert len(first) > 50
    assert all(one.built is other.built for one, other in zip(first, second, strict=True))


async def test_every_operation_is_described_and_named_once(server: Server) -> None:
    description = server.app.openapi()
    tags = {tag["name"] for tag in description["tags"]}
    assert all(tag["description"] for tag in description["tags"])
    names = []
    for method, path, operation in operations(description):
        assert operation["summary"], (method, path)
        assert operation["tags"], (method, path)
        assert set(operation["tags"]) <= tags, (method, path)
        assert {"422", "4XX", "5XX"} <= operation["responses"].keys(), (method, path)
        names.append(operation["operationId"])
    assert len(names) == len(set(names)) > 30
    for name, (method, path) in OPERATIONS.items():
        assert description["paths"][path][method]["operationId"] == name


async def test_a_key_is_described_for_everything_but_the_probes(server: Server) -> None:
    description = server.app.openapi()
    assert description["security"] == [{"key": []}]
    assert description["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    free = {path for _, path, one in operations(description) if one.get("security") == []}
    assert free == {"/v1/health/", "/v1/ready/"}


@pytest.mark.promise("P12")
async def test_everything_that_a_client_can_make_large_has_a_described_bound(
    server: Server,
) -> None:
    description = server.app.openapi()
    unbounded = []
    for method, path, operation in operations(description):
        for parameter in operation.get("parameters", ()):
            unbounded += [
                f"{method} {path} {parameter['name']}"
                for schema in _options(parameter["schema"])
                if not _bounded(schema)
            ]
    assert unbounded == []


def _options(schema: dict[str, Any]) -> list[dict[str, Any]]:
    options: list[dict[str, Any]] = schema.get("anyOf", [schema])
    return options


def _bounded(schema: dict[str, Any]) -> bool:
    match schema.get("type"):
        case "string":
            return not {"maxLength", "pattern", "enum", "const"}.isdisjoint(schema)
        case "integer" | "number":
            return {"minimum", "maximum"} <= schema.keys()
        case "array":
            return "maxItems" in schema and _bounded(schema["items"])
        case _:
            return True


async def test_streams_are_described_as_streams_with_their_headers(server: Server) -> None:
    description = server.app.openapi()
    answers = {one["operationId"]: one["responses"]["200"] for _, _, one in operations(description)}
    streaming = {
        name: set(answer["content"])
        for name, answer in answers.items()
        if "text/event-stream" in answer.get("content", ())
        and not name.startswith(("openai_", "ag_ui_", "copilotkit_", "durable_streams_"))
    }
    either = {"application/json", "text/event-stream"}
    assert streaming.pop("follow_runs") == {"text/event-stream"}  # Its frames name their runs.
    assert streaming.pop("admin_stream_probe") == {"text/event-stream"}  # It is no run.
    assert streaming == {
        "retrieve_conversation_stream": {"text/event-stream"},
        "retrieve_run_stream": {"text/event-stream"},
        "follow_conversation_stream": {"text/event-stream"},
        "follow_run_stream": {"text/event-stream"},
        "create_agent_message_stream": {"text/event-stream"},
        "send_conversation_message": either,
        "send_message": either,
        "ai_sdk_resume": {"text/event-stream"},
        "ai_sdk_send": {"text/event-stream"},
    }
    for name in streaming:
        assert answers[name]["headers"].keys() == {
            "X-Run-Id",
            "X-Run-Status",
            "X-Stream-Starts-After",
        }
        assert "data: [DONE]" in answers[name]["description"]
