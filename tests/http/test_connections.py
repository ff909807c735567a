"""Bytes on a socket that no HTTP client would send."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from reattach.domain.limits import KEEPALIVE_IDLE_SECONDS
from reattach.http.connection.protocol import HttpConnection
from tests.support.live_server import WAIT_SECONDS, LiveServer, joined, message_body

JSON_HEAD = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n"


async def exchanged(live: LiveServer, *pieces: bytes, ends: bool = False) -> bytes:
    """Send the pieces, and give all that comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection(*live.address)
    received = b""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                if ends:
                    writer.write_eof()
                while data := await reader.read(65536):
                    received += data
            except ConnectionError:
                pass  # bytes received before the reset count
    finally:
        writer.close()
    return received


def request(path: str, body: bytes = b"{}", *, close: bool = True) -> bytes:
    connection = b"Connection: close\r\n" if close else b""
    head = JSON_HEAD + connection + b"Content-Length: %d\r\n\r\n" % len(body)
    return b"POST " + path.encode() + b" HTTP/1.1\r\n" + head + body


def error_of(answer: bytes) -> tuple[int, dict[str, Any]]:
    """The status and the body of the one answer there is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), answer[:500]
    assert b"\r\ncontent-type: application/json" in head.lower()
    error = json.loads(body)
    assert isinstance(error["detail"], str)
    return int(head.split()[1]), error


@pytest.fixture
async def send_path(live: LiveServer) -> str:
    agent = (await live.agent())["id"]
    live.gates.open(agent)
    return f"/v1/agents/{agent}/messages/stream"


@pytest.mark.parametrize(
    "sent",
    [
        b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\n{}\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: nonsense\r\n\r\n",
        b"Content-Length: -1\r\n\r\n{}",
        b"Content-Length: x\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"Content-Length: 99999999999999999999999999\r\n\r\n",
        b"X: \0\r\n\r\n",
        b"no header\r\n\r\n",
    ],
    ids=repr,
)
async def test_invalid_http_gets_400_and_starts_nothing(
    live: LiveServer, send_path: str, sent: bytes
) -> None:
    before = live.rows()
    head = f"POST {send_path} HTTP/1.1\r\n".encode() + JSON_HEAD
    status, error = error_of(await exchanged(live, head + sent, ends=True))
    assert (status, error["code"]) == (400, "invalid_http")
    assert live.rows() == before


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"PO ST / HTTP/1.1\r\n\r\n",
        b"POST /v1/runs/\xff/stream HTTP/1.1\r\n\r\n",
        b"\0" * 1000,
        b"hello\r\n",
    ],
    ids=repr,
)
async def test_another_protocol_gets_400(live: LiveServer, sent: bytes) -> None:
    status, error = error_of(await exchanged(live, sent, ends=True))
    assert (status, error["code"]) == (400, "invalid_http")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
async def test_a_request_that_is_cut_off_starts_nothing(
    live: LiveServer, send_path: str, kept: float
) -> None:
    before = live.rows()
    body = json.dumps(message_body("x" * 2000)).encode()
    whole = request(send_path, body)
    assert await exchanged(live, whole[: int(len(whole) * kept)], ends=True) == b""
    chunked = f"POST {send_path} HTTP/1.1\r\n".encode() + JSON_HEAD
    chunked += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b" % (len(body), body)
    assert await exchanged(live, chunked[: int(len(chunked) * kept)], ends=True) == b""
    assert await live.got("/v1/health/")
    assert live.rows() == before


@pytest.mark.promise("P12")
@pytest.mark.parametrize("size", [300_000, 3_000_000])
@pytest.mark.parametrize("part", ["url", "query", "name", "value", "many"])
async def test_a_head_without_an_end_is_refused_while_it_is_small(
    live: LiveServer, part: str, size: int
) -> None:
    piece = b"x" * 10_000
    start = {
        "url": b"POST /v1/runs/",
        "query": b"POST /v1/runs/x/stream?",
        "name": b"POST /v1/runs/x/stream HTTP/1.1\r\n",
        "value": b"POST /v1/runs/x/stream HTTP/1.1\r\nX: ",
        "many": b"POST /v1/runs/x/stream HTTP/1.1\r\n",
    }[part]
    if part == "many":
        piece = b"X: y\r\n" * 1000
    sent = [start, *[piece] * (size // len(piece))]
    status, error = error_of(await exchanged(live, *sent))
    assert (status, error["code"]) == (431, "limit_exceeded")


@pytest.mark.promise("P12")
async def test_a_body_that_is_announced_too_large_is_413_before_it_comes(
    live: LiveServer, send_path: str
) -> None:
    before = live.rows()
    for more in (b"", b"Expect: 100-continue\r\n"):
        head = f"POST {send_path} HTTP/1.1\r\n".encode() + JSON_HEAD + more
        answer = await exchanged(live, head + b"Content-Length: 17000000\r\n\r\n")
        status, error = error_of(answer)
        assert (status, error["code"]) == (413, "limit_exceeded")
    assert live.rows() == before


async def test_pipelined_requests_are_answered_in_order_streams_among_them(
    live: LiveServer, send_path: str
) -> None:
    run = (await live.streamed(send_path, message_body("hi", background=True)))[0].event["run_id"]
    whole = joined(await live.streamed(f"/v1/runs/{run}/stream", {}))
    path = f"/v1/runs/{run}/stream"
    answer = await exchanged(
        live,
        request(path, close=False)
        + request("/v1/runs/run-1/stream", close=False)
        + request(path, b'{"starting_after":1000}', close=False)
        + request("/v1/runs/run-2/stream"),
    )
    frames = [frame + b"\n\n" for frame in whole.split(b"\n\n")[:-1]]
    places = [
        answer.index(frames[0]),
        answer.index(frames[-1]),
        answer.index(b"Invalid run ID format: run-1"),
        answer.rindex(frames[-1]),
        answer.index(b"Invalid run ID format: run-2"),
    ]
    assert places == sorted(set(places))
    assert answer.count(b"HTTP/1.1 ") == 4


async def test_a_request_to_speak_websocket_is_answered_as_http(live: LiveServer) -> None:
    upgrade = (
        b"Host: 127.0.0.1\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    answer = await exchanged(live, b"GET /v1/health/ HTTP/1.1\r\n" + upgrade, ends=True)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_connections_that_come_and_go_leave_the_server_as_it_was(live: LiveServer) -> None:
    async def come_and_go(sent: bytes) -> None:
        _, writer = await asyncio.open_connection(*live.address)
        writer.write(sent)
        writer.transport.abort()

    for sent in (b"", b"P", request("/v1/runs/run-1/stream")[:40]):
        await asyncio.gather(*(come_and_go(sent) for _ in range(100)))
    assert (await live.got("/v1/health/"))["status"] == "ok"


async def test_nothing_is_left_of_a_connection_that_is_reset(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = asyncio.Event()
    forgotten: list[bool] = []
    connection_lost = HttpConnection.connection_lost

    def noted(connection: HttpConnection, exc: Exception | None) -> None:
        connection_lost(connection, exc)
        watch = connection._endpoint.watch
        forgotten.append(
            not any(connection in queue for queue, _ in watch._queues.values())
            and connection not in watch._unread
            and connection not in connection._endpoint.state.connections
        )
        lost.set()

    monkeypatch.setattr(HttpConnection, "connection_lost", noted)
    reader, writer = await asyncio.open_connection(*live.address)
    writer.write(b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    async with asyncio.timeout(WAIT_SECONDS):
        assert await reader.readuntil(b'"}')
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.transport.abort()
        await lost.wait()
    assert forgotten == [True]


@pytest.mark.promise("P13")
async def test_tcp_asks_whether_silent_clients_are_still_there(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B4: a client whose machine is gone holds its connection for ever."""
    alive: list[tuple[int, ...]] = []
    connection_made = HttpConnection.connection_made

    def noted(connection: HttpConnection, transport: asyncio.BaseTransport) -> None:
        made = transport.get_extra_info("socket")
        alive.append(
            (
                made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            )
        )
        connection_made(connection, transport)

    monkeypatch.setattr(HttpConnection, "connection_made", noted)
    answer = await exchanged(live, b"GET /v1/health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert alive == [(1, KEEPALIVE_IDLE_SECONDS)]


@pytest.mark.parametrize("path", ["/v1/health", "/v1/health/", "/v1/ready", "/v1/ready/"])
async def test_head_on_health_and_ready_has_the_status_and_no_body(
    live: LiveServer, path: str
) -> None:
    """B6: it is 405."""
    head = b"HEAD " + path.encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    answer = await exchanged(live, head)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")
    live.context.runs.open_runs.draining = True
    try:
        status = b"200" if "health" in path else b"503"
        assert (await exchanged(live, head)).split()[1] == status
    finally:
        live.context.runs.open_runs.draining = False


@pytest.mark.parametrize("announced", [True, False])
async def test_a_client_that_writes_all_before_it_reads_sees_the_413_too(
    live: LiveServer, announced: bool
) -> None:
    piece = b"x" * 256 * 1024

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(68):
            yield piece

    async with httpx2.AsyncClient(base_url=live.url) as client:
        for _ in range(3):
            content = piece * 68 if announced else pieces()
            response = await client.post("/v1/agents/", content=content)
            assert (response.status_code, response.json()["code"]) == (413, "limit_exceeded")
