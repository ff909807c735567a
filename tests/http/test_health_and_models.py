from __future__ import annotations

from pathlib import Path

import pytest

from reattach import __version__
from tests.support.asgi_server import Server, serving


@pytest.mark.parametrize("path", ["/v1/health/", "/v1/health", "/v1/ready/", "/v1/ready"])
async def test_health_answers_without_a_redirect(server: Server, path: str) -> None:
    response = await server.client.get(path, follow_redirects=False)
    assert response.status_code == 200
    assert response.json() == {"version": __version__, "status": "ok"}


@pytest.mark.promise("P15")
async def test_a_server_that_drains_lives_and_is_not_ready(server: Server) -> None:
    await server.context.runs.drain(0)
    assert (await server.client.get("/v1/health/")).status_code == 200
    for path in ("/v1/ready/", "/v1/ready"):
        response = await server.client.get(path)
        assert response.status_code == 503
        assert response.json() == {"version": __version__, "status": "draining"}
        assert int(response.headers["retry-after"]) > 0


async def test_models_are_listed_by_provider(server: Server) -> None:
    models = await server.got("/v1/models/")
    assert {model["handle"] for model in models} == {"scripted/echo", "scripted/slow"}
    for model in models:
        assert model["name"] == model["model"] == model["handle"].partition("/")[2]
        assert model["context_window"] == model["max_context_window"] > 0
    assert await server.got("/v1/models/", provider_name="scripted") == models
    assert await server.got("/v1/models/", provider_name="nobody") == []
    assert await server.got("/v1/models/", provider_category=["byok"]) == []
    assert await server.got("/v1/models/", provider_category=["byok", "base"]) == models
    unknown = await server.client.get("/v1/models/", params={"provider_type": "nonsense"})
    assert unknown.status_code == 422


@pytest.mark.parametrize("default", ["scripted/echo", "scripted/slow"])
async def test_the_default_model_is_listed_first(default: str, tmp_path: Path) -> None:
    async with serving(tmp_path, default_model=default) as server:
        first, second = await server.got("/v1/models/")
    assert first["handle"] == default
    assert second["handle"] != default


async def test_there_are_no_embedding_models(server: Server) -> None:
    assert await server.got("/v1/models/embedding") == []


async def test_agents_without_a_model_show_the_default_one(tmp_path: Path) -> None:
    async with serving(tmp_path, default_model="scripted/slow") as server:
        assert (await server.agent())["model"] == "scripted/slow"
