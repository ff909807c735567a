"""The first thing that a browser, a wrong base URL and the log of a server show."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from reattach import __version__
from reattach.observe import configure_logging
from reattach.runs import endings
from tests.support.asgi_server import Server, serving


@pytest.fixture
async def plain_server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server whose page is off."""
    async with serving(tmp_path, page="off") as server:
        yield server


async def test_a_browser_gets_a_page_that_loads_nothing(plain_server: Server) -> None:
    """E8: `/` shows the name, version and state of the server."""
    server = plain_server
    response = await server.client.get("/", headers={"accept": "text/html,*/*;q=0.8"})
    page = response.text
    policy = response.headers["content-security-policy"]

    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert __version__ in page
    assert "It is ready." in page
    assert not re.search(r"<script|<img|<link|src=|https?://|@import|url\(", page)
    assert "default-src 'none'" in policy
    [style] = re.findall(r"<style>(.*)</style>", page, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    for link in re.findall(r'href="([^"]+)"', page):
        assert (await server.client.get(f"/{link}")).status_code == 200


async def test_any_other_client_gets_the_same_as_json(plain_server: Server) -> None:
    """E8: `/` is JSON for programs, with and without keys, and while draining."""
    server = plain_server
    assert await server.got("/") == {
        "name": "reattach",
        "version": __version__,
        "status": "ok",
        "api": "/v1",
        "openapi": "/openapi.json",
    }
    head = await server.client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    await server.context.runs.drain(0)
    assert (await server.got("/"))["status"] == "draining"
    page = await server.client.get("/", headers={"accept": "text/html"})
    assert "draining" in page.text


@pytest.mark.parametrize(
    "path",
    ["/openai/v1/v1/models", "/openai/models", "/v1/responses", "/chat/completions"],
)
async def test_a_client_of_openai_with_a_wrong_base_url_gets_the_right_one(
    server: Server, path: str
) -> None:
    response = await server.client.post(path, json={})
    assert response.status_code == 404
    assert "http://localhost:8283/openai/v1," in response.text


@pytest.mark.parametrize("path", ["/v1/v1/agents/", "/v1/v1/models", "/v1/v1", "/v1/v1/v1/runs/"])
async def test_a_doubled_v1_is_named(server: Server, path: str) -> None:
    """E8: a base URL that ends in /v1 gets a 404 with the remedy."""
    for method in ("GET", "POST", "DELETE"):
        response = await server.client.request(method, path)
        assert response.status_code == 404
        assert "contains /v1 twice" in response.json()["detail"]
    other = await server.client.get("/v1/nothing")
    assert other.json()["detail"].endswith("GET /openapi.json lists the routes.")


async def test_each_run_has_a_line_at_its_beginning_and_one_at_its_end(server: Server) -> None:
    """E7: the log says which runs there were, whose, by which model, and how they ended."""
    agent = await server.agent(name="a")
    conversation = await server.conversation(agent["id"])
    with structlog.testing.capture_logs() as logs:
        await server.send(conversation["id"], "hello")
        failing = {"messages": [{"role": "user", "content": "[fail]"}], "streaming": False}
        await server.client.post(f"/v1/conversations/{conversation['id']}/messages", json=failing)
    lines: list[Any] = [one for one in logs if one["event"] in {"run began", "run ended"}]

    assert [one["event"] for one in lines] == ["run began", "run ended"] * 2
    for one in lines:
        assert one["run_id"].startswith("run-")
        assert one["model"] == "scripted/echo"
        assert one["tenant"]
    assert [lines[1]["outcome"], lines[3]["outcome"]] == ["end_turn", "llm_api_error"]
    assert lines[1]["events"] > 0
    assert lines[1]["seconds"] >= 0
    assert "hello" not in str(lines)


async def test_requests_are_logged_by_setting_without_query_and_body(tmp_path: Path) -> None:
    """E7: an access log, where the settings ask for it."""
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    async with serving(tmp_path / "with", access_log=True) as server:
        with structlog.testing.capture_logs() as logs:
            await server.client.get("/v1/agents/?name=secret")
            await server.client.post("/v1/agents/%0Aforged/x", json={"name": "secret"})
            agent = await server.agent(name="secret")
            conversation = await server.conversation(agent["id"])
            await server.send(conversation["id"], "secret")
    requests = [one for one in logs if one["event"] == "request"]
    assert [(one["method"], one["path"], one["status"]) for one in requests[:2]] == [
        ("GET", "/v1/agents/", 200),
        ("POST", "/v1/agents/%0Aforged/x", 404),
    ]
    assert requests[-1]["path"].endswith("/messages")
    assert all(one["seconds"] >= 0 for one in requests)
    assert "secret" not in str(requests)

    async with serving(tmp_path / "without") as server:
        with structlog.testing.capture_logs() as logs:
            await server.client.get("/v1/agents/")
    assert not [one for one in logs if one["event"] == "request"]


def test_no_library_logs_request_bodies_at_any_level() -> None:
    """E7: `--log-level debug` shows no SQL with its values, no body and no row."""
    root, ours = logging.getLogger(), logging.getLogger("reattach")
    before = root.handlers[:], root.level, ours.level, structlog.get_config()
    try:
        configure_logging("console", "debug")
        for library in ("sqlalchemy.engine.Engine", "openai", "httpcore2", "psycopg"):
            assert not logging.getLogger(library).isEnabledFor(logging.INFO), library
        assert not logging.getLogger("any.other.library").isEnabledFor(logging.DEBUG)
        assert ours.isEnabledFor(logging.DEBUG)
    finally:
        root.handlers[:], level, our_level, config = before
        root.setLevel(level)
        ours.setLevel(our_level)
        structlog.configure(**config)


def test_every_text_that_says_to_send_again_says_with_which_otid() -> None:
    """E5: the same OTID would return the failed run."""
    source = Path(endings.__file__).parents[1]
    joined = {
        path: re.sub(r'"\s*f?"', "", path.read_text("utf-8")) for path in source.rglob("*.py")
    }
    texts = [
        text[match.start() : match.start() + 60]
        for text in joined.values()
        for match in re.finditer(r"[Ss]end the message again", text)
    ]

    assert len(texts) >= 6
    assert [text for text in texts if "with a new OTID" not in text] == []
