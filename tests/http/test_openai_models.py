"""Agents as the models of OpenAI's API, and errors in its form."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.routing import Route

from reattach.domain.ids import TenantId
from tests.support.asgi_server import Server, serving
from tests.support.live_server import LiveServer, listening


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path) as live:
        yield live


@pytest.fixture
def server(shared_server: Server) -> Server:
    return shared_server


async def test_agents_are_models_by_id_and_by_name(live: LiveServer) -> None:
    agent = await live.agent(name="guide")
    listed = await live.got("/openai/v1/models")
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["name"]) == (agent["id"], "model", "guide")
    assert model["created"] > 0
    for name in (agent["id"], "guide"):
        assert await live.got(f"/openai/v1/models/{name}") == model


async def test_a_name_that_two_agents_have_names_none(live: LiveServer) -> None:
    await live.agent(name="twin")
    await live.agent(name="twin")
    refused = await live.client.get("/openai/v1/models/twin")
    assert refused.status_code == 400
    assert "Several agents" in refused.json()["error"]["message"]


async def test_a_tenant_sees_its_own_agents_only(live: LiveServer) -> None:
    agent = await live.agent(name="ours")
    async with await live.as_tenant(TenantId("tenant-b")) as stranger:
        assert (await stranger.get("/openai/v1/models")).json()["data"] == []
        for name in (agent["id"], "ours"):
            refused = await stranger.get(f"/openai/v1/models/{name}")
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == "not_found"
        refused = await live.client.get("/openai/v1/models")
        assert refused.status_code == 401
        assert "reattach keys create" in refused.json()["error"]["message"]
        assert refused.json() == {
            "error": {
                "message": refused.json()["error"]["message"],
                "type": "invalid_request_error",
                "param": None,
                "code": "unauthorized",
            }
        }


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/openai/v1/models/none", 404, "not_found"),
        ("/openai/v1/nowhere", 404, "not_found"),
        ("/openai/v1/models?x=" + "&".join(["y"] * 3_000), 422, "validation_error"),
    ],
)
async def test_errors_have_the_form_of_that_api(
    server: Server, path: str, status: int, code: str
) -> None:
    refused = await server.client.get(path)
    assert refused.status_code == status
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert error["message"]
    assert int(refused.headers["content-length"]) == len(refused.content)


async def test_other_paths_keep_the_form_of_their_errors(server: Server) -> None:
    refused = await server.client.get("/v1/nowhere")
    assert refused.json()["code"] == "not_found"


async def test_a_dialect_can_be_switched_off(tmp_path: Path) -> None:
    async with serving(tmp_path, dialects=()) as server:
        refused = await server.client.get("/openai/v1/models")
        assert refused.status_code == 404
        assert refused.json()["code"] == "not_found"
        paths = [route.path for route in server.app.all_routes() if isinstance(route, Route)]
        assert not [path for path in paths if path.startswith("/openai/")]
