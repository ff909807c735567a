"""A server with streams that anybody may write, for tests of the protocol that write first.

The streams are logs of a real server, without runs. Messages of other types than JSON are kept as
Base64, so the frames have the form of a run's and the production code reads them. Requests with
headers of what only writers need (producers, forks, expiry) are answered by 501.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from reattach.domain.clock import SystemClock
from reattach.domain.errors import ReattachError
from reattach.domain.events import RunStatus
from reattach.domain.ids import DEFAULT_TENANT, FIRST_SEQ, RunId, Seq, Token, new_run_id
from reattach.engine.scripted import ScriptedEngine
from reattach.http.context import Context
from reattach.http.dialects.durable_streams.events import SAFE_HEADERS
from reattach.http.dialects.durable_streams.reading import LogReads
from reattach.http.dialects.durable_streams.routes import parse_reading
from reattach.http.errors import error_response
from reattach.http.middleware.access import ACCESS
from reattach.log.base import RunWriter
from reattach.records.base import Target
from reattach.server import datadir
from reattach.server.assembly import assemble
from reattach.settings import Settings
from reattach.wire.dialects.durable_streams import EVENTS, Content, offset_text
from reattach.wire.sse import data_frame, frame_data, split_frames
from tests.support.live_server import InLoop
from tests.support.records_files import prepare_records

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
NOT_OFFERED: Final = ("stream-ttl", "stream-expires-at", "stream-fork", "producer-")
"""Beginnings of the names of those headers."""


class Bytes(Content):
    """Messages of any type but JSON: a body is all of them, joined."""

    def __init__(self, content_type: str) -> None:
        self.content_type = content_type
        self._is_text = _essence(content_type).startswith("text/")
        self.event_headers = () if self._is_text else ((b"stream-sse-data-encoding", b"base64"),)

    def body(self, frames: bytes) -> bytes:
        return b"".join(base64.b64decode(frame_data(frame)) for frame in split_frames(frames))

    def lines(self, frames: bytes) -> list[bytes]:
        body = self.body(frames)
        if not self._is_text:
            return [base64.b64encode(body)]
        lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        return [b" " + line if line.startswith(b" ") else line for line in lines]


@dataclass
class Written:
    """One stream."""

    run_id: RunId
    writer: RunWriter
    content: Content
    next_seq: Seq = FIRST_SEQ
    closed: bool = False
    last_order: str | None = None
    """The last ``Stream-Seq``."""
    appending: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def append(self, messages: list[bytes], *, close: bool) -> None:
        if (messages or close) and not self.closed:
            frames = [data_frame(one) for one in messages]
            await self.writer.append(self.next_seq, frames, close=close)
            self.next_seq = Seq(self.next_seq + len(frames))
            self.closed = close

    def headers(self) -> dict[str, str]:
        closure = {"stream-closed": "true"} if self.closed else {}
        return {
            **SAFE_HEADERS,
            "stream-next-offset": offset_text(Seq(self.next_seq - 1)),
            "content-type": self.content.content_type,
            **closure,
        }


class WritableStreams:
    """The streams of one server, by path."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._streams: dict[str, Written] = {}

    async def answer(self, request: Request) -> Response:
        is_offered = not any(name.startswith(NOT_OFFERED) for name in request.headers)
        if request.method == "PUT":
            return await self._create(request) if is_offered else _refusal(501)
        stream = self._streams.get(request.url.path)
        if stream is None:
            return _refusal(404)
        if not is_offered:
            return _refusal(501)
        if request.method == "POST":
            async with stream.appending:
                return await self._append(stream, request)
        if request.method == "DELETE":
            del self._streams[request.url.path]
            await self._context.runs.log.delete(stream.run_id)
            return Response(status_code=204, headers=SAFE_HEADERS)
        return await self._read(stream, request)

    async def _create(self, request: Request) -> Response:
        content_type = request.headers.get("content-type") or BINARY
        closes = request.headers.get("stream-closed", "").lower() == "true"
        stream = self._streams.get(request.url.path)
        if stream is not None:
            same = _essence(content_type) == _essence(stream.content.content_type)
            is_as_it_was = same and closes == stream.closed
            return Response(status_code=200 if is_as_it_was else 409, headers=stream.headers())
        body = await request.body()
        content = EVENTS if _essence(content_type) == JSON else Bytes(content_type)
        messages = _messages(content, body, allows_none=True)
        if messages is None:
            return _refusal(400)
        run_id = new_run_id()
        writer = await self._context.runs.log.open(run_id, Token(1))
        stream = self._streams[request.url.path] = Written(run_id, writer, content)
        await stream.append(messages, close=closes)
        headers = {**stream.headers(), "location": str(request.url)}
        return Response(status_code=201, headers=headers)

    async def _append(self, stream: Written, request: Request) -> Response:
        body = await request.body()
        closes = request.headers.get("stream-closed", "").lower() == "true"
        if closes and not body:
            await stream.append([], close=True)
            return Response(status_code=204, headers=stream.headers())
        content_type = request.headers.get("content-type")
        if not body or content_type is None:
            return _refusal(400)
        if stream.closed or _essence(content_type) != _essence(stream.content.content_type):
            return Response(status_code=409, headers=stream.headers())
        order = request.headers.get("stream-seq")
        if order is not None and stream.last_order is not None and order <= stream.last_order:
            return Response(status_code=409, headers=stream.headers())
        messages = _messages(stream.content, body)
        if messages is None:
            return _refusal(400)
        stream.last_order = order or stream.last_order
        await stream.append(messages, close=closes)
        return Response(status_code=204, headers=stream.headers())

    async def _read(self, stream: Written, request: Request) -> Response:
        target = Target(stream.run_id, DEFAULT_TENANT, RunStatus.RUNNING, background=True)
        reads = LogReads(self._context, target, stream.content)
        query = request.query_params
        try:
            if request.method == "HEAD":
                return await reads.describe()
            reading = parse_reading(
                request,
                offset=query.get("offset"),
                live=query.get("live"),
                cursor=query.get("cursor"),
                if_none_match=request.headers.get("if-none-match"),
            )
            return await reads.read(reading, request, request.scope[ACCESS])
        except ReattachError as error:
            return error_response(error)


def _messages(content: Content, body: bytes, *, allows_none: bool = False) -> list[bytes] | None:
    """Return the messages of a body as they are kept; None if it has none, or none that is JSON."""
    if not body:
        return [] if allows_none else None
    if content is not EVENTS:
        return [base64.b64encode(body)]
    try:
        value: Any = json.loads(body)
    except ValueError:
        return None
    values = value if isinstance(value, list) else [value]
    if not values and not allows_none:
        return None
    return [json.dumps(one, separators=(",", ":"), ensure_ascii=False).encode() for one in values]


def _essence(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _refusal(status: int) -> Response:
    return Response(status_code=status, headers=SAFE_HEADERS)


@asynccontextmanager
async def serving_streams(directory: Path) -> AsyncIterator[str]:
    """Serve streams below ``/v1/stream/`` on a free port of the event loop; yield the URL."""
    settings = Settings(data_dir=directory, port=0, cors_origins="*")
    await prepare_records(datadir.records_file(directory))
    clock = SystemClock()
    async with assemble(settings, engines=[ScriptedEngine(clock=clock)], clock=clock) as context:
        server = InLoop(context, "", None)
        methods = ["GET", "HEAD", "PUT", "POST", "DELETE"]
        route = Route("/v1/stream/{name}", WritableStreams(context).answer, methods=methods)
        server.app.router.routes.insert(0, route)
        async with server.running(settings, drains=True):
            yield server._url
