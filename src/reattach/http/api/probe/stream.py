"""A stream of frames at set times, over the same body as the streams of runs."""

import asyncio
import secrets
from typing import Final

import msgspec
import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

from reattach.domain.clock import Clock, sleep_unless_set
from reattach.domain.errors import ReattachError
from reattach.http.api.probe.probes import Probe, ProbeStream, StreamEnd
from reattach.http.api.probe.schemas import ProbeStreamBody
from reattach.http.errors import error_response
from reattach.http.middleware.access import ACCESS, Access
from reattach.http.stream.body import CONNECTION_EXTENSION, AsgiBody, Body, Connection, LentBody
from reattach.http.stream.framing import LETTA
from reattach.wire.sse import data_frame

logger = structlog.get_logger(__name__)

_PADDING_CHARS: Final = 120
"""With it a frame has the size of an event with one token of an answer."""


class ProbeResponse(Response):
    """Streams as ``asked`` says, and notes in ``probe`` how and when the stream ended.

    Its headers are those of the stream of a run. Each frame has its number and the seconds since
    the head by the server's clock, so the client can compare the spacing without comparing clocks.
    """

    media_type = "text/event-stream"

    def __init__(
        self, probe: Probe, asked: ProbeStreamBody, clock: Clock, stall_seconds: float
    ) -> None:
        super().__init__()
        self._probe = probe
        self._asked = asked
        self._clock = clock
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access: Access = scope[ACCESS]
        connection: Connection | None = scope.get("extensions", {}).get(CONNECTION_EXTENSION)
        try:
            access.use.open_stream()
        except ReattachError as error:
            await error_response(error)(scope, receive, send)
            return
        try:
            stream = self._probe.open(self._asked.stream)
        except ReattachError as error:
            access.use.close_stream()
            await error_response(error)(scope, receive, send)
            return
        delivery = _Delivery(self._probe, stream, self._asked, self._clock, access)
        start = {"type": "http.response.start", "status": 200, "headers": self._probe_headers()}
        try:
            if connection is None:
                await send(start)
            else:
                await connection.begin(send, start)
        except BaseException:
            delivery.release("client_left")
            raise
        if connection is not None:
            delivery.start(LentBody(connection, self._stall_seconds))
            return
        await delivery.run(AsgiBody(send, receive, self._stall_seconds))

    def _probe_headers(self) -> list[tuple[bytes, bytes]]:
        return [
            *LETTA.headers,
            (b"x-run-id", self._probe.id.encode()),
            (b"x-run-status", b"running"),
            (b"x-stream-starts-after", b"0"),
        ]


class _Delivery:
    """Writes the frames of one stream."""

    def __init__(
        self,
        probe: Probe,
        stream: ProbeStream,
        asked: ProbeStreamBody,
        clock: Clock,
        access: Access,
    ) -> None:
        self._probe = probe
        self._stream = stream
        self._asked = asked
        self._clock = clock
        self._access = access
        self._task: asyncio.Task[None] | None = None

    def start(self, body: Body) -> None:
        """Deliver in a task of its own, after the application has returned."""
        self._task = asyncio.get_running_loop().create_task(self.run(body), name="probe")

    def release(self, end: StreamEnd) -> None:
        """Note the end, and count the stream no longer."""
        self._probe.close(self._stream, end)
        self._access.discard(self._stream.stopped.set)
        self._access.use.close_stream()

    async def run(self, body: Body) -> None:
        """Deliver until the end, or until the client has left or nobody may go on with it."""
        stream = self._stream
        stream.body = body
        body.on_disconnect(self._note_client_left)
        self._access.add(stream.stopped.set)
        end: StreamEnd = "cut_off"
        try:
            await self._deliver(body)
            if not stream.stopped.is_set() and self._probe.left_seconds:
                end = "broken" if self._asked.end == "broken" else "finished"
        except TimeoutError:
            logger.info("probe cut off", reason="its client reads nothing")
        except Exception:
            logger.exception("probe cut off")
        finally:
            self.release("client_left" if body.gone else end)
            if end == "finished":
                await body.finish()
            else:
                body.abort()

    def _note_client_left(self) -> None:
        self._probe.close(self._stream, "client_left")
        self._stream.stopped.set()

    async def _deliver(self, body: Body) -> None:
        asked, stream = self._asked, self._stream
        await body.begin()
        if asked.first_seconds:
            await self._pause(asked.first_seconds)
        first_at = self._clock.monotonic_seconds()
        for number in range(asked.frames):
            if number:
                # Times count from the first frame, so that no delay adds to the next one.
                due = first_at + number * asked.interval_seconds
                await self._pause(due - self._clock.monotonic_seconds())
            if stream.stopped.is_set() or not self._probe.left_seconds:
                return
            await self._write(body, "x" * _PADDING_CHARS)
        await self._pause(asked.silence_seconds)
        if asked.burst_bytes and not stream.stopped.is_set():
            # Random text, because compression would make it small.
            await self._write(body, secrets.token_urlsafe(asked.burst_bytes)[: asked.burst_bytes])
        await self._pause(asked.last_seconds)

    async def _write(self, body: Body, padding: str) -> None:
        stream = self._stream
        stream.frames += 1
        at_seconds = self._clock.monotonic_seconds() - stream.began_at_seconds
        frame = {"number": stream.frames, "at_seconds": round(at_seconds, 6), "padding": padding}
        await body.write(data_frame(msgspec.json.encode(frame)))

    async def _pause(self, seconds: float) -> None:
        """Return after ``seconds``, or as soon as the stream or the probe is to end."""
        seconds = min(seconds, self._probe.left_seconds)
        if seconds > 0 and not self._stream.stopped.is_set():
            await sleep_unless_set(self._clock, seconds, self._stream.stopped)
        else:
            await asyncio.sleep(0)
