"""A server behind real proxies with the files of deploy/."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import new_uuid
from reattach.domain.limits import MAX_REQUEST_BYTES
from reattach.testing.programs.server import ServerProcess
from tests.deploy.conftest import ProxyBefore
from tests.deploy.upstream import WAIT_SECONDS
from tests.support.proxy_server import HaproxyServer, ProxyServer
from tests.support.raw_clients import Client
from tests.support.received import Received

HOP_BY_HOP = {"connection", "date", "keep-alive", "transfer-encoding", "content-length", "server"}
FOR_PROXIES = {"x-accel-buffering"}


@asynccontextmanager
async def at(url: str, server: ServerProcess) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {server.api_key}"}
    async with httpx2.AsyncClient(base_url=url, timeout=WAIT_SECONDS, headers=headers) as http:
        yield Client(http)


@pytest.fixture
async def client(proxy: ProxyServer, server: ServerProcess) -> AsyncIterator[Client]:
    async with at(proxy.url, server) as client:
        yield client


def send_body(text: str, **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": text, "otid": new_uuid()}
    return {"messages": [message], "background": True, "stream_tokens": True, **more}


@asynccontextmanager
async def streaming(
    client: Client, conversation_id: str, text: str, **more: Any
) -> AsyncIterator[tuple[httpx2.Response, AsyncIterator[bytes]]]:
    path = f"/v1/conversations/{conversation_id}/messages"
    async with (
        asyncio.timeout(WAIT_SECONDS),
        client.http.stream("POST", path, json=send_body(text, **more)) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        yield answer, answer.aiter_raw()


async def read_until(pieces: AsyncIterator[bytes], received: Received, seq: int) -> None:
    while received.cursor < seq:
        received.feed(await anext(pieces))


async def read_to_end(pieces: AsyncIterator[bytes], received: Received) -> None:
    async for piece in pieces:
        received.feed(piece)


async def cancel(client: Client, run_id: str) -> None:
    agent_id = (await client.got(f"/v1/runs/{run_id}"))["agent_id"]
    answer = await client.post(f"/v1/agents/{agent_id}/messages/cancel", {"run_ids": [run_id]})
    assert answer.status_code == 200, answer.text


@pytest.mark.promise("P6")
async def test_events_arrive_while_the_run_continues_and_a_cancel_ends_the_stream(
    client: Client,
) -> None:
    received = Received()
    conversation_id = await client.conversation()
    async with streaming(client, conversation_id, "[hang=3]") as (answer, pieces):
        await read_until(pieces, received, 3)
        await cancel(client, answer.headers["x-run-id"])
        await read_to_end(pieces, received)

    assert received.end() == {"stop_reason": "cancelled", "error_type": None}


@pytest.mark.promise("P4")
async def test_a_resume_by_cursor_gives_the_rest_byte_for_byte(client: Client) -> None:
    whole, rest = Received(), Received(20)
    conversation_id = await client.conversation()
    run_id = await client.send(conversation_id, "[chunks=200]", whole, otid=new_uuid())
    assert run_id is not None
    await client.resume(run_id, rest)

    assert rest.frames == whole.frames[20:]
    assert whole.text == "".join(f"t{number} " for number in range(200))


@pytest.mark.promise("P4")
async def test_a_long_replay_passes_whole(client: Client) -> None:
    live, replay = Received(), Received()
    conversation_id = await client.conversation()
    text = "[chunks=3000][size=500]"
    run_id = await client.send(conversation_id, text, live, otid=new_uuid())
    assert run_id is not None
    await client.resume(run_id, replay)

    assert replay.frames == live.frames
    assert replay.end() == {"stop_reason": "end_turn", "error_type": None}


async def test_a_body_near_the_limit_passes_both_ways(client: Client) -> None:
    conversation_id = await client.conversation()
    text = "[chunks=1]" + "x" * (MAX_REQUEST_BYTES - 1024)
    async with asyncio.timeout(WAIT_SECONDS):
        await client.send(conversation_id, text, Received(), otid=new_uuid())
        kept = await client.got(f"/v1/conversations/{conversation_id}/messages")

    sent = [one["content"] for one in kept if one["message_type"] == "user_message"]
    assert sent == [text]


async def test_a_body_above_the_limit_is_refused_and_starts_nothing(
    client: Client, proxy: ProxyServer
) -> None:
    conversation_id = await client.conversation()
    path = f"/v1/conversations/{conversation_id}/messages"
    try:
        answer = await client.post(path, send_body("x" * MAX_REQUEST_BYTES))
    except httpx2.TransportError:
        # The server closes without reading the rest, and so does HAProxy.
        assert isinstance(proxy, HaproxyServer)
    else:
        assert (answer.status_code, answer.json()["code"]) == (413, "limit_exceeded")
        assert str(MAX_REQUEST_BYTES) in answer.json()["detail"]

    assert await client.got("/v1/runs/", conversation_id=conversation_id) == []


async def test_answers_errors_and_headers_pass_unchanged(
    client: Client, server: ServerProcess
) -> None:
    conversation_id = await client.conversation()
    agent_id = (await client.got(f"/v1/conversations/{conversation_id}"))["agent_id"]
    ended = Received()
    run_id = await client.send(conversation_id, "[chunks=3]", ended, otid=new_uuid())
    requests: list[tuple[str, str, Any]] = [
        ("GET", f"/v1/runs/{run_id}", None),
        ("GET", "/v1/runs/run-1", None),
        ("GET", "/v1/nothing/", None),
        ("POST", f"/v1/runs/{run_id}/stream", {"starting_after": 2}),
        ("POST", f"/v1/runs/{run_id}/stream", {"starting_after": -1}),
        ("POST", f"/v1/runs/{run_id}/stream", {"starting_after": 10_000}),
        ("POST", f"/v1/conversations/{agent_id}/stream", {"run_id": run_id}),
        ("POST", f"/v1/conversations/{conversation_id}/stream", {}),
        ("POST", f"/v1/conversations/{conversation_id}/messages", {"messages": 1}),
    ]
    seen = []
    async with at(server.url, server) as direct:
        for method, path, body in requests:
            a = await direct.http.request(method, path, json=body)
            b = await client.http.request(method, path, json=body)
            assert (b.status_code, b.content) == (a.status_code, a.content)
            left_out = HOP_BY_HOP | FOR_PROXIES
            expected = {k: v for k, v in a.headers.items() if k not in left_out}
            assert {k: v for k, v in b.headers.items() if k not in left_out} == expected
            seen.append((a.status_code, set(expected)))

    assert {status for status, _ in seen} >= {200, 404, 422}
    headers = set().union(*(names for _, names in seen))
    assert headers >= {"x-run-id", "x-run-status", "x-stream-starts-after", "deprecation", "link"}


async def test_a_redirect_leads_to_the_proxy(client: Client, proxy: ProxyServer) -> None:
    answer = await client.http.get("/v1/agents")

    assert answer.status_code == 307
    assert answer.headers["location"] == f"{proxy.url}/v1/agents/"


async def test_pings_keep_a_silent_stream_open_and_without_them_it_is_cut(
    kind: tuple[type[ProxyServer], Path], server: ServerProcess, tmp_path: Path
) -> None:
    program, configuration = kind
    impatient = tmp_path / configuration.name
    text = configuration.read_text()
    assert text.count(" 75s") > 1
    impatient.write_text(text.replace(" 75s", " 1s"))
    with program(impatient, [server.address]) as proxy:
        async with at(proxy.url, server) as client, at(server.url, server) as direct:
            received = Received()
            conversation_id = await client.conversation()
            async with streaming(client, conversation_id, "[hang=1]", include_pings=True) as (
                answer,
                pieces,
            ):
                run_id = answer.headers["x-run-id"]
                silent = {"include_pings": False}
                with pytest.raises(httpx2.TransportError):
                    await client.post(f"/v1/runs/{run_id}/stream", silent)
                while received.pings < 12:  # longer than the proxy's time limit of silence
                    received.feed(await anext(pieces))
                await cancel(direct, run_id)
                await read_to_end(pieces, received)

    assert received.end() == {"stop_reason": "cancelled", "error_type": None}


@pytest.mark.promise("S11")
async def test_a_server_without_a_key_refuses_requests_through_a_proxy(
    proxy_before: ProxyBefore, open_server: ServerProcess
) -> None:
    """D2: requests through a proxy are refused until a key exists."""
    with (
        proxy_before([open_server.address]) as proxy,
        httpx2.Client(headers={"Host": "localhost"}, timeout=WAIT_SECONDS) as http,
    ):
        refused = await asyncio.to_thread(http.get, f"{proxy.url}/v1/agents/")
        direct = await asyncio.to_thread(http.get, f"{open_server.url}/v1/agents/")
    assert (refused.status_code, refused.json()["code"]) == (401, "key_required")
    assert direct.status_code == 200


async def test_a_trailer_is_not_a_header_behind_a_proxy(
    proxy: ProxyServer, server: ServerProcess
) -> None:
    """B2: HAProxy passes trailers on, and they must not become headers."""
    said = (
        b"POST /v1/agents/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Authorization: Bearer %b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
        b"Content-Type: application/json\r\nX-Forwarded-Proto: https\r\n\r\n"
    ) % str(server.api_key).encode()
    url = httpx2.URL(proxy.url)
    async with asyncio.timeout(WAIT_SECONDS):
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(said)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"'Content-Type: application/json'" in answer
