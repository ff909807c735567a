"""The page at `/`: who gets it, its files and their headers, and who the server says one is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from reattach import __version__
from reattach.http.front.files import POLICY
from tests.support.asgi_server import Server
from tests.support.live_server import LiveServer, listening

HTML = {"accept": "text/html,*/*;q=0.8"}


async def test_the_page_and_its_files_come_from_the_server_and_have_a_strict_policy(
    server: Server,
) -> None:
    index = await server.client.get("/", headers=HTML)
    assert 'data-keys="none"' in index.text
    links = re.findall(r'(?:src|href)="([^"]+)"', index.text)
    assert len(links) == 3
    for link in links:
        assert link.startswith("page/")  # Relative, so it works below any path.
        file = await server.client.get(f"/{link}")
        assert file.status_code == 200
        assert file.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert file.headers["content-security-policy"] == POLICY
        assert file.headers["x-content-type-options"] == "nosniff"
        assert file.headers["referrer-policy"] == "no-referrer"
    assert "require-trusted-types-for 'script'; trusted-types 'none'" in POLICY
    assert not re.search(r"https?:|\*|unsafe", POLICY)


async def test_a_browser_that_has_a_file_gets_304_and_one_without_its_digest_asks_again(
    server: Server,
) -> None:
    for path in ("/", "/page/app.js"):
        first = await server.client.get(path, headers=HTML)
        assert first.headers["cache-control"] == "no-cache"
        again = await server.client.get(
            path, headers=HTML | {"if-none-match": f"W/{first.headers['etag']}"}
        )
        assert (again.status_code, again.content) == (304, b"")
    old = await server.client.get("/page/app.js?v=0123456789abcdef")
    assert old.headers["cache-control"] == "no-cache"


async def test_files_are_compressed_for_those_who_take_that(server: Server) -> None:
    plain = await server.client.get("/page/app.js", headers={"accept-encoding": "identity"})
    packed = await server.client.get("/page/app.js", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert plain.content == packed.content
    assert int(packed.headers["content-length"]) < len(plain.content) / 2


async def test_no_other_file_is_served(server: Server) -> None:
    for name in ("index.html", "..%2ffront.py", "nothing.js"):
        assert (await server.client.get(f"/page/{name}")).status_code == 404


@pytest.mark.parametrize(
    ("setting", "page_without_a_key", "page_with_a_key"),
    [("auto", "none", None), ("on", "none", "required"), ("off", None, None)],
)
async def test_the_page_is_shown_as_the_setting_says(
    tmp_path: Path, setting: str, page_without_a_key: str | None, page_with_a_key: str | None
) -> None:
    async def shown(server: LiveServer) -> str | None:
        index = await server.client.get("/", headers=HTML)
        found = re.search(r'data-keys="(\w+)"', index.text)
        return found and found[1]

    for directory in ("without", "with"):
        (tmp_path / directory).mkdir()
    async with listening(tmp_path / "without", page=setting) as server:
        assert await shown(server) == page_without_a_key
        said = (await server.client.get("/v1/server")).json()
        assert said["page"] is (page_without_a_key is not None)
        if setting == "off":
            assert (await server.client.get("/page/app.js")).status_code == 404
    async with listening(tmp_path / "with", page=setting, require_key=True) as server:
        assert await shown(server) == page_with_a_key


async def test_a_forwarded_browser_gets_no_page_that_could_do_nothing(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        direct = await live.client.get("/", headers=HTML)
        proxied = await live.client.get("/", headers=HTML | {"x-forwarded-for": "192.0.2.1"})
    assert "data-keys" in direct.text
    assert "data-keys" not in proxied.text


async def test_the_server_says_who_a_key_or_a_token_is(server: Server) -> None:
    everyone: dict[str, Any] = await server.got("/v1/server")
    assert everyone["version"] == __version__
    assert everyone["status"] == "ok"
    assert everyone["open"] is True
    assert everyone["token"] is None
    agent = await server.agent(name="a")
    conversation = await server.conversation(agent["id"])
    issued = await server.client.post(
        "/v1/tokens", json={"conversation_id": conversation["id"], "scope": ["read"]}
    )
    assert issued.status_code == 200, issued.text
    bearer = {"authorization": f"Bearer {issued.json()['token']}"}
    limited = (await server.client.get("/v1/server", headers=bearer)).json()
    assert limited["scopes"] == []
    assert limited["is_operator"] is False
    assert limited["open"] is False
    assert limited["token"]["conversation_id"] == conversation["id"]
    assert limited["token"]["scopes"] == ["read"]


@pytest.mark.parametrize("scope", ["read", "send", "cancel"])
async def test_a_token_of_any_scope_may_ask_who_it_is(server: Server, scope: str) -> None:
    agent = await server.agent(name="a")
    conversation = await server.conversation(agent["id"])
    issued = await server.client.post(
        "/v1/tokens", json={"conversation_id": conversation["id"], "scope": [scope]}
    )
    bearer = {"authorization": f"Bearer {issued.json()['token']}"}
    said = await server.client.get("/v1/server", headers=bearer)
    assert (said.status_code, said.json()["token"]["scopes"]) == (200, [scope])


async def test_the_page_works_below_the_path_of_another_application(server: Server) -> None:
    outer = Starlette(routes=[Mount("/letta", server.app)])
    transport = httpx2.ASGITransport(app=outer, client=("127.0.0.1", 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        index = await client.get("/letta/", headers=HTML)
        for link in re.findall(r'(?:src|href)="([^"]+)"', index.text):
            assert (await client.get(f"/letta/{link}")).status_code == 200
        assert (await client.get("/letta/v1/server")).json()["version"] == __version__
