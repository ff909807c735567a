from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from reattach.domain import errors
from reattach.domain.errors import (
    EngineError,
    LogError,
    ReattachError,
    StartupError,
    ToolError,
    connection,
    stores,
)
from reattach.domain.limits import MAX_REQUEST_BYTES
from reattach.http.errors import error_response, status_of
from tests.support.asgi_server import Server, serving

# Raised within the server and turned into others before a client could see them.
INTERNAL = (LogError, StartupError, ToolError)


def test_every_error_that_clients_can_see_has_a_status_of_its_own() -> None:
    classes = [
        value
        for module in (errors, connection, stores)
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, ReattachError)
        and not issubclass(value, INTERNAL)
        and value is not ReattachError
    ]
    assert len(classes) > 15
    for cls in classes:
        status = status_of(cls.__new__(cls))
        assert 400 <= status < 600
        assert (status == 500) <= issubclass(cls, EngineError), cls


def test_internal_errors_get_a_generic_500() -> None:
    response = error_response(errors.LogClosedError("a secret of /var/lib"))
    assert response.status_code == 500
    assert b"secret" not in bytes(response.body)


def test_a_model_error_also_has_the_form_of_the_retired_server() -> None:
    response = error_response(errors.ModelRateLimitError("Slow down."))
    assert response.status_code == 429
    assert response.body == (
        b'{"detail":"Slow down.","code":"llm_rate_limit",'
        b'"error":{"type":"llm_rate_limit","message":"Slow down.","detail":null}}'
    )


async def test_an_unexpected_exception_gets_a_generic_500_and_is_logged(
    server: Server, log_lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: object, **options: object) -> None:
        raise RuntimeError("a secret of /var/lib")

    monkeypatch.setattr(type(server.context.records.agents), "list", broken)
    origin = {"Origin": "http://localhost:3000"}
    response = await server.client.get("/v1/agents/", headers=origin)
    assert response.status_code == 500
    assert response.json() == {"detail": "An unknown error occurred", "code": "internal_error"}
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert [line["event"] for line in log_lines] == ["request failed"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/agents/a/b/c/d", 404, "not_found"),
        ("PUT", "/v1/agents/", 405, "method_not_allowed"),
        ("DELETE", "/v1/health/", 405, "method_not_allowed"),
    ],
)
async def test_errors_of_the_framework_have_the_same_shape(
    server: Server, method: str, path: str, status: int, code: str
) -> None:
    response = await server.client.request(method, path)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert isinstance(response.json()["detail"], str)


async def test_a_malformed_id_in_the_path_gets_422_with_an_example(server: Server) -> None:
    response = await server.client.get("/v1/agents/agent-X")
    assert response.status_code == 422
    body = response.json()
    assert body.keys() == {"trace_id", "detail", "code", "errors", "examples"}
    assert (body["trace_id"], body["code"]) == ("", "validation_error")
    assert body["detail"].startswith("path.agent_id: ")
    assert body["errors"][0].keys() == {"loc", "msg", "type"}
    assert body["errors"][0]["loc"] == ["path", "agent_id"]
    assert body["examples"] == ["agent-123e4567-e89b-42d3-8456-426614174000"]


async def test_an_error_repeats_only_a_bounded_part_of_the_request(server: Server) -> None:
    long = "x" * 500_000
    agent = await server.agent()
    for body in (
        {"name": long},
        {long: 1, "agent_type": long},
        {"tags": [long] * 10},
        {"memory_blocks": [{"label": long, "value": long}] * 10},
        {"model_settings": {"temperature": long}},
        {"model": "a/" + long},
    ):
        response = await server.client.post("/v1/agents/", json=body)
        assert response.status_code == 422
        assert len(response.content) < 20_000
    for path in (f"/v1/agents/{long[:50_000]}", f"/v1/runs/{long[:50_000]}"):
        response = await server.client.get(path)
        assert response.status_code in {400, 422}
        assert len(response.content) < 2_000
    query = {"after": long[:50_000]}
    response = await server.client.get(f"/v1/agents/{agent['id']}/messages", params=query)
    assert response.status_code == 422
    assert len(response.content) < 2_000


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("application/merge-patch+json", 200),
        ("text/plain", 422),
        ("application/x-www-form-urlencoded", 422),
        ("", 422),
    ],
)
async def test_a_body_needs_a_json_content_type(
    server: Server, content_type: str, status: int
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = await server.client.post("/v1/agents/", content=b'{"name": "a"}', headers=headers)
    assert response.status_code == status
    if status == 422:
        assert "Content-Type: application/json" in response.json()["detail"]
        assert await server.got("/v1/agents/") == []


@pytest.mark.promise("P12")
async def test_a_body_over_the_limit_is_refused_before_it_is_read(server: Server) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1024 * 1024
            yield b" " * (1024 * 1024)

    declared = await server.client.post(
        "/v1/agents/",
        content=b"{}",
        headers={"Content-Length": str(MAX_REQUEST_BYTES + 1), "Content-Type": "application/json"},
    )
    json_type = {"Content-Type": "application/json"}
    streamed = await server.client.post("/v1/agents/", content=chunks(), headers=json_type)
    for response in (declared, streamed):
        assert response.status_code == 413
        assert response.json()["code"] == "limit_exceeded"
        assert str(MAX_REQUEST_BYTES) in response.json()["detail"]
    assert await server.got("/v1/agents/") == []


async def test_a_body_at_the_limit_is_read(server: Server) -> None:
    body = b'{"name": "a"}'.ljust(MAX_REQUEST_BYTES)
    headers = {"Content-Type": "application/json"}
    response = await server.client.post("/v1/agents/", content=body, headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("length", ["-1", "x", "9" * 5000, "٣"])
async def test_an_invalid_content_length_is_not_a_server_error(server: Server, length: str) -> None:
    headers = [(b"Content-Length", length.encode()), (b"Content-Type", b"application/json")]
    response = await server.client.post("/v1/agents/", content=b"{}", headers=headers)
    assert response.status_code < 500


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1/agents", "/v1/agents/"),
        ("/v1/conversations", "/v1/conversations/"),
        ("/v1/runs", "/v1/runs/"),
        ("/v1/models", "/v1/models/"),
        ("/v1/blocks", "/v1/blocks/"),
        (
            "/v1/agents/agent-123e4567-e89b-42d3-8456-426614174000/",
            "/v1/agents/agent-123e4567-e89b-42d3-8456-426614174000",
        ),
    ],
)
async def test_the_other_form_of_a_path_leads_to_the_right_one(
    server: Server, path: str, target: str
) -> None:
    response = await server.client.get(path + "?limit=1", follow_redirects=False)
    assert response.status_code == 307
    assert response.headers["location"] == f"http://localhost{target}?limit=1"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:5173", True),
        ("https://127.0.0.1:8443", True),
        ("http://[::1]:3000", True),
        ("https://app.example.org", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("null", False),
    ],
)
async def test_pages_of_this_machine_and_of_the_settings_may_call(
    tmp_path: Path, origin: str, allowed: bool
) -> None:
    """B11: an origin of the settings is written as browsers write it."""
    async with serving(
        tmp_path, cors_origins=("localhost", "https://APP.example.org:443/")
    ) as server:
        preflight = await server.client.options(
            "/v1/agents/",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "PATCH",
                "Access-Control-Request-Headers": "authorization,x-stainless-lang",
            },
        )
        response = await server.client.get("/v1/health/", headers={"Origin": origin})
    assert (preflight.status_code == 200) is allowed
    assert response.status_code == 200
    assert (response.headers.get("access-control-allow-origin") == origin) is allowed
    if allowed:
        assert "x-run-id" in response.headers["access-control-expose-headers"].lower()
        assert preflight.headers["access-control-max-age"] == "7200"


async def test_the_application_works_mounted_into_another(server: Server) -> None:
    outer = Starlette(routes=[Mount("/letta", app=server.app)])
    transport = httpx2.ASGITransport(outer)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://localhost", follow_redirects=True
    ) as client:
        assert (await client.get("/letta/v1/health")).status_code == 200
        made = await client.post("/letta/v1/agents", json={"name": "a"})
        assert made.status_code == 200
        assert (await client.get(f"/letta/v1/agents/{made.json()['id']}")).status_code == 200
