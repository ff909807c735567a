"""Resumes past the routing: the same bytes, and whatever is unusual goes the long way."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog
from starlette.types import Message

from reattach.domain.ids import DEFAULT_TENANT, new_run_id
from reattach.http.app import Api, create_app
from reattach.http.connection.protocol import HttpConnection
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening, new_threads

USUAL = ((b"host", b"localhost"), (b"content-type", b"application/json"))


class App:
    """The application in this process; ``long_ways`` counts the requests that were routed."""

    def __init__(self, live: LiveServer) -> None:
        self.long_ways = 0
        self.api = create_app(live.context)
        assert isinstance(self.api, Api)
        self.api.middleware_stack = self.api.build_middleware_stack()
        self._routed = self.api.middleware_stack
        self.api.middleware_stack = self._route

    async def _route(self, *asgi: Any) -> None:
        self.long_ways += 1
        await self._routed(*asgi)

    async def asked(self, body: bytes = b"{}", *more: bytes, **scope: Any) -> list[Message]:
        """All messages of the answer to a body that may come in several pieces."""
        pieces = (body, *more)
        given: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": place < len(pieces)}
            for place, piece in enumerate(pieces, 1)
        ]
        sent: list[Message] = []

        async def receive() -> Message:
            if not given:
                await asyncio.Event().wait()
            return given.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [*scope.pop("headers", USUAL), (b"content-length", b"%d" % sum(map(len, pieces)))]
        whole = {"type": "http", "method": "POST", "query_string": b"", "root_path": "",
                 "http_version": "1.1", "scheme": "http", "headers": headers,
                 "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 80), **scope}  # fmt: skip
        async with asyncio.timeout(WAIT_SECONDS):
            await self.api(whole, receive, send)
        return sent


@pytest.fixture
def app(live: LiveServer) -> App:
    return App(live)


@pytest.fixture
async def ended(live: LiveServer) -> tuple[str, str]:
    return await ended_run(live)


async def ended_run(live: LiveServer) -> tuple[str, str]:
    """A conversation and a run of it that has ended."""
    agent, conversation = await new_threads(live)
    live.gates.open(agent)
    run = await live.background_run(conversation, "hello")
    await live.ended(run)
    return conversation, run


async def test_a_usual_resume_is_answered_past_the_routing_in_the_same_bytes(
    app: App, ended: tuple[str, str]
) -> None:
    conversation, run = ended
    by_run = b'{"run_id": "%b", "starting_after": 2, "include_pings": null}' % run.encode()
    asked = [
        (f"/v1/conversations/{conversation}/stream", by_run),
        ("/v1/conversations/default/stream", by_run),
        (f"/v1/runs/{run}/stream", b'{"batch_size": 1, "unknown": [1]}'),
    ]
    short = [await app.asked(body, path=path) for path, body in asked]
    assert app.long_ways == 0
    app.api.fast_path = None
    assert [await app.asked(body, path=path) for path, body in asked] == short
    assert app.long_ways == len(asked)
    assert b"".join(message.get("body", b"") for message in short[0]).endswith(b"[DONE]\n\n")


async def test_below_a_mount_the_short_way_is_the_same(app: App, ended: tuple[str, str]) -> None:
    path = f"/v1/runs/{ended[1]}/stream"
    plain = await app.asked(path=path)
    assert await app.asked(path=f"/letta{path}", root_path="/letta") == plain
    assert app.long_ways == 0


UNUSUAL: dict[str, dict[str, Any]] = {
    "another method": {"method": "PUT"},
    "a query": {"query_string": b"x=1"},
    "no content type": {"headers": USUAL[:1]},
    "a longer content type": {
        "headers": [USUAL[0], (b"content-type", b"application/json; charset=utf-8")]
    },
    "an origin": {"headers": [*USUAL, (b"origin", b"http://localhost:3000")]},
    "a compressed body": {"headers": [*USUAL, (b"content-encoding", b"gzip")]},
    "expect": {"headers": [*USUAL, (b"expect", b"100-continue")]},
    "a header twice": {"headers": [*USUAL, (b"host", b"localhost")]},
    "a host that is not this machine": {"headers": [(b"host", b"example.com"), USUAL[1]]},
    "no body": {"body": b""},
    "a large body": {"body": b'{"otid": null' + b" " * 5000 + b"}"},
    "no JSON": {"body": b"{"},
    "a name twice": {"body": b'{"otid": null, "otid": null}'},
    "no object": {"body": b"[]"},
    "null": {"body": b"null"},
    "a cursor that is none": {"body": b'{"starting_after": "x"}'},
    "a cursor with an underscore": {"body": b'{"starting_after": "1_0"}'},
    "a cursor that is too large": {"body": b'{"starting_after": 99999999999999999999}'},
    "a slash at the end": {"path": "/"},
    "an id that is none": {"path": "/v1/runs/run-1/stream"},
    "an unknown run": {"path": f"/v1/runs/{new_run_id()}/stream"},
    "an unknown OTID": {"path": "/v1/conversations/default/stream", "body": b'{"otid": "?"}'},
    "nothing active": {"path": "/v1/conversations/default/stream"},
}


@pytest.mark.parametrize("name", UNUSUAL)
async def test_unusual_requests_are_answered_by_the_regular_routes(
    app: App, ended: tuple[str, str], name: str
) -> None:
    asked = {"path": f"/v1/runs/{ended[1]}/stream", **UNUSUAL[name]}
    if asked["path"] == "/":
        asked["path"] = f"/v1/runs/{ended[1]}/stream/"
    first = await app.asked(**asked)
    assert app.long_ways == 1
    app.api.fast_path = None
    assert await app.asked(**asked) == first


async def test_a_refused_key_leaves_one_line_whichever_way_the_request_goes(
    tmp_path: Path, log_lines: list[Any]
) -> None:
    async with listening(tmp_path) as live:
        client = await live.as_tenant(OTHER_TENANT)
        await client.aclose()
        wrong = App(live)
        headers = (*USUAL, (b"authorization", b"Bearer wrong"))
        for path in ("/v1/runs/run-1/stream", f"/v1/runs/{new_run_id()}/stream"):
            log_lines.clear()
            [head, _] = await wrong.asked(path=path, headers=headers)
            assert head["status"] == 401
            assert [line["event"] for line in log_lines] == ["key refused"]


async def test_a_body_that_comes_in_pieces_goes_the_long_way(
    app: App, ended: tuple[str, str]
) -> None:
    path = f"/v1/runs/{ended[1]}/stream"
    sent = await app.asked(b'{"starting_after": ', b"1}", path=path)
    assert app.long_ways == 1
    assert (b"x-stream-starts-after", b"1") in sent[0]["headers"]


async def test_a_key_is_looked_at_on_the_short_way_too(tmp_path: Path) -> None:
    statuses = []
    async with listening(tmp_path) as own:  # The others' server has no keys, and is open.
        _, run = await ended_run(own)
        _, secret = await own.context.records.keys.create(DEFAULT_TENANT, "ours")
        _, theirs = await own.context.records.keys.create(OTHER_TENANT, "theirs")
        app = App(own)
        for key in (secret, "rk_wrong", theirs):
            headers = [*USUAL, (b"authorization", f"Bearer {key}".encode())]
            answer = await app.asked(path=f"/v1/runs/{run}/stream", headers=headers)
            statuses.append((answer[0]["status"], app.long_ways))
    assert statuses == [(200, 0), (401, 1), (404, 2)]


async def test_the_access_log_has_resumes_with_their_run_cursor_and_key_on_both_ways(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path, access_log=True) as own:
        _, run = await ended_run(own)
        key, secret = await own.context.records.keys.create(DEFAULT_TENANT, "ours")
        app = App(own)
        headers = [*USUAL, (b"authorization", f"Bearer {secret}".encode())]
        body = b'{"starting_after": 2}'
        with structlog.testing.capture_logs() as lines:
            await app.asked(body, path=f"/v1/runs/{run}/stream", headers=headers)
            await app.asked(
                body, path=f"/v1/runs/{run}/stream", headers=[*headers, (b"origin", b"http://x")]
            )
    assert app.long_ways == 1
    requests = [line for line in lines if line["event"] == "request"]
    assert [(one["status"], one["run_id"], one["cursor"], one["key"]) for one in requests] == [
        (200, run, 2, key.id)
    ] * 2
    assert secret not in str(lines)


class Recorded:
    """A transport whose writes are noted."""

    def __init__(self, transport: Any, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(bytes(data))
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bytes that the server writes to its connections, write by write."""
    writes: list[bytes] = []
    connection_made = HttpConnection.connection_made

    def noted(protocol: HttpConnection, transport: Any) -> None:
        recorded: Any = Recorded(transport, writes)
        connection_made(protocol, recorded)

    monkeypatch.setattr(HttpConnection, "connection_made", noted)
    return writes


async def test_the_end_of_an_ended_run_is_one_write_from_the_head_to_the_last_chunk(
    live: LiveServer, ended: tuple[str, str], writes: list[bytes]
) -> None:
    reader, writer = await asyncio.open_connection(*live.address)
    path = f"/v1/runs/{ended[1]}/stream"
    for cursor in (0, 1, 10**6):
        body = b'{"starting_after":%d}' % cursor
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        async with asyncio.timeout(WAIT_SECONDS):
            answer = await reader.readuntil(b"\r\n0\r\n\r\n")
        assert writes == [answer]
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        writes.clear()
    writer.close()


async def test_the_head_of_a_silent_run_does_not_wait_for_its_next_event(live: LiveServer) -> None:
    agent, conversation = await new_threads(live)
    run = await live.held_run(agent, conversation, "[chunks=4]", after=2)
    async with live.stream(f"/v1/runs/{run}/stream", {}) as stream:
        seen = 0
        while seen < 2:
            frame = await stream.next()
            seen = frame.event["seq_id"]
    body = {"starting_after": seen}
    async with live.stream(f"/v1/runs/{run}/stream", body) as stream:
        assert stream.headers["x-stream-starts-after"] == str(seen)
    await live.ended(run)


@pytest.mark.promise("P5")
async def test_a_damaged_log_is_reported_in_the_same_way_on_both_ways(tmp_path: Path) -> None:
    """C1: a damaged row of the log."""
    async with listening(tmp_path) as live:
        _, run = await ended_run(live)
        file = tmp_path / "events.db"
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            async with asyncio.timeout(WAIT_SECONDS):
                while not connection.execute("UPDATE log_chunk SET frames = x'ff00ff'").rowcount:
                    await asyncio.sleep(0.01)
    async with listening(tmp_path) as live:
        app = App(live)
        short = await app.asked(path=f"/v1/runs/{run}/stream")
        app.api.fast_path = None
        assert await app.asked(path=f"/v1/runs/{run}/stream") == short
        assert short[0]["status"] == 410
        assert b'"events_lost"' in short[1]["body"]
        for look in ("frames", "snapshot?seq=1"):
            answer = await live.client.get(f"/v1/runs/{run}/{look}")
            assert (answer.status_code, answer.content) == (410, short[1]["body"])
        shown = await live.got(f"/v1/admin/runs/{run}")
        assert shown["events"] == shown["last_seq"]
        assert shown["tool_calls"] == []
        assert (await live.got(f"/v1/runs/{run}/timeline"))["commits"]
