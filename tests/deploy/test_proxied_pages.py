"""Streams of web pages behind real proxies with the files of deploy/."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from reattach.domain.ids import new_conversation_id, new_run_id, new_uuid
from reattach.testing.programs.ports import free_port
from reattach.testing.programs.server import ServerProcess
from reattach.wire.event_source import RETRY_LINE
from tests.deploy.conftest import ProxyBefore
from tests.deploy.upstream import WAIT_SECONDS
from tests.support.event_stream import EventStream
from tests.support.proxy_server import ProxyServer
from tests.support.raw_clients import Client
from tests.support.received import Received
from tests.support.stores import eventually

SECRET = "not-to-be-logged"


@pytest.mark.promise("S12", "S13", "P4")
async def test_a_page_follows_through_the_proxy_and_the_log_has_no_query(
    proxy: ProxyServer, server: ServerProcess
) -> None:
    headers = {"Authorization": f"Bearer {server.api_key}"}
    whole = Received()
    async with (
        asyncio.timeout(WAIT_SECONDS),
        httpx2.AsyncClient(base_url=proxy.url, timeout=WAIT_SECONDS, headers=headers) as http,
    ):
        client = Client(http)
        thread = await client.conversation()
        run = await client.send(thread, "[chunks=40]", whole, otid=new_uuid())
        path = f"/v1/runs/{run}/stream"
        answer = await http.get(path, params={"unknown": SECRET}, headers={"Last-Event-ID": "20"})
        over = await http.get(path, headers={"Last-Event-ID": f"{whole.cursor}-done"})

    form, rest = EventStream(), Received(20)
    rest.feed(form.feed(answer.content))
    assert (rest.done, rest.frames) == (True, whole.frames[20:])
    assert (over.status_code, over.content) == (204, b"")
    await eventually(lambda: path in proxy.logged, WAIT_SECONDS)
    assert SECRET not in proxy.logged


@pytest.mark.promise("S14")
async def test_a_page_comes_back_when_the_proxy_reaches_no_server(
    proxy_before: ProxyBefore,
) -> None:
    with proxy_before([("127.0.0.1", free_port())]) as proxy:
        async with httpx2.AsyncClient(base_url=proxy.url, timeout=WAIT_SECONDS) as http:
            for path in (
                f"/v1/runs/{new_run_id()}/stream",
                f"/v1/conversations/{new_conversation_id()}/stream",
                "/v1/conversations/default/stream",
            ):
                got = await http.get(path, params={"token": SECRET})
                assert got.status_code == 200
                assert got.headers["content-type"] == "text/event-stream"
                assert got.headers["cache-control"] == "no-store"
                assert got.content.startswith(RETRY_LINE)
                assert b"data:" not in got.content
                posted = await http.post(path, params={"token": SECRET}, json={})
                assert posted.status_code in {502, 503}
                assert posted.json()["code"] == "unavailable"
                assert posted.headers["retry-after"] == "1"
            for path in ("/v1/runs/", f"/v1/runs/{new_run_id()}", "/v1/agents/stream"):
                other = await http.get(path)
                assert other.status_code in {502, 503}
                assert other.json()["code"] == "unavailable"
            await eventually(lambda: path in proxy.logged, WAIT_SECONDS)
            assert SECRET not in proxy.logged
