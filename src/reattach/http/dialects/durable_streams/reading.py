"""Reads of a log: at once, by long-polling, or as an event stream."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from fastapi import Response
from starlette.requests import ClientDisconnect, Request

from reattach.domain.errors import CursorAheadError, TrimmedError
from reattach.domain.ids import Seq
from reattach.http.client_name import client_of
from reattach.http.context import Context
from reattach.http.dialects.durable_streams.events import SAFE_HEADERS, ControlledFraming
from reattach.http.middleware.access import Access
from reattach.http.stream.body import CONNECTION_EXTENSION, Connection
from reattach.http.stream.response import RunStream
from reattach.log.base import Head
from reattach.records.base import Target
from reattach.runs.following.follow import Following
from reattach.runs.following.readers import Transport
from reattach.runs.inspection.frames import extent, read_slices
from reattach.wire.dialects.durable_streams import EVENTS, Content, cursor_text, etag, offset_text

POLL_SECONDS: Final = 25.0
"""How long a long-poll waits for events: less than the patience of common proxies."""

BODY_BYTES: Final = 1024 * 1024
"""The size beyond which the rest is left for the next read. A single event may be larger."""

_NO_STORE: Final = {"cache-control": "no-store"}
_REVALIDATED: Final = {"cache-control": "private, no-cache"}
"""A browser may keep the body, but must ask whether its holder may still read it."""

Live = Literal["long-poll", "sse"]


@dataclass(frozen=True, slots=True)
class Reading:
    """The part of a log that a client asks for."""

    after_seq: Seq | None
    """The events that it has; None: all there are at present."""
    live: Live | None = None
    cursor: str | None = None
    """The last ``stream-cursor`` that the client got."""
    if_none_match: str | None = None


class LogReads:
    """The reads of one log, whose messages have the form ``content``.

    Errors of all reads:
        ExpiredError: The events were trimmed or lost, or the log was deleted.
        CursorAheadError: The offset is past the end of an open log.
        StoreUnavailableError: The log cannot be read at present.
    """

    def __init__(self, context: Context, target: Target, content: Content = EVENTS) -> None:
        self._context = context
        self._runs = context.runs
        self._target = target
        self._content = content

    async def describe(self) -> Response:
        """Return the answer to a HEAD: the type of the log and its end."""
        head = await extent(self._runs, self._target)
        headers = {**_headers(head.last_seq, closed=head.closed), **_NO_STORE}
        response = Response(headers={**headers, "content-type": self._content.content_type})
        del response.headers["content-length"]  # It would be that of a GET.
        return response

    async def read(self, reading: Reading, request: Request, access: Access) -> Response:
        """Return the answer to a GET."""
        if reading.live == "sse":
            return await self._events(reading)
        if reading.live == "long-poll":
            return await access.during(self._poll(reading, request))
        return await self._catch_up(reading)

    async def _catch_up(self, reading: Reading) -> Response:
        head = await extent(self._runs, self._target)
        if reading.after_seq is None:
            headers = _headers(head.last_seq, up_to_date=True, closed=head.closed)
            return self._response(b"", {**headers, **_NO_STORE})
        after_seq = await self._within(head, reading.after_seq)
        frames, last_seq = await self._page(head, after_seq)
        is_at_end = last_seq >= head.last_seq
        closed = is_at_end and head.closed
        tag = etag(after_seq, last_seq, closed=closed)
        headers = {
            **_headers(last_seq, up_to_date=is_at_end, closed=closed),
            **_REVALIDATED,
            "etag": tag,
        }
        if _names(reading.if_none_match, tag):
            return Response(status_code=304, headers=headers)
        return self._response(frames, headers)

    async def _poll(self, reading: Reading, request: Request) -> Response:
        head = await extent(self._runs, self._target)
        after_seq = head.last_seq
        if reading.after_seq is not None:
            after_seq = await self._within(head, reading.after_seq)
        if after_seq == head.last_seq and not head.closed:
            following = await self._runs.follow(self._target, after_seq, prefetches=False)
            async with following:
                if await self._has_more(following, request):
                    head = await extent(self._runs, self._target)
                    after_seq = await self._within(head, after_seq)
        frames, last_seq = await self._page(head, after_seq)
        is_at_end = last_seq >= head.last_seq
        headers = {
            **_headers(last_seq, up_to_date=is_at_end, closed=is_at_end and head.closed),
            **_NO_STORE,
            "stream-cursor": self._next_cursor(reading),
        }
        if not frames:
            return Response(status_code=204, headers=headers)
        return self._response(frames, headers)

    async def _has_more(self, following: Following, request: Request) -> bool:
        """Wait for more events or the end of the log; False: nothing came, so the client polls on.

        Raises:
            ClientDisconnect: The client is gone.
        """
        woken = asyncio.Event()
        following.wake = woken.set
        leaving = asyncio.create_task(_disconnect(request))
        leaving.add_done_callback(lambda _: woken.set())
        connection: Connection | None = request.scope.get("extensions", {}).get(
            CONNECTION_EXTENSION
        )
        if connection is not None:  # A client that closes in silence only ends its side at first.
            connection.on_half_close(woken.set)
        self._runs.readers.add(
            following,
            self._target,
            transport=Transport.GET,
            client=client_of(request.scope),
            pings=False,
        )
        try:
            async with asyncio.timeout(POLL_SECONDS):
                while not following.has_more:
                    if following.released:
                        return False
                    if leaving.done() or (connection is not None and connection.half_closed):
                        raise ClientDisconnect
                    woken.clear()
                    await woken.wait()
        except TimeoutError:
            return False
        finally:
            self._runs.readers.remove(following)
            leaving.cancel()
        return True

    async def _events(self, reading: Reading) -> Response:
        after_seq = reading.after_seq
        if after_seq is None:
            after_seq = (await extent(self._runs, self._target)).last_seq
        return RunStream(
            self._runs,
            self._target,
            self._context.clock,
            cursor=after_seq,
            include_pings=True,
            stall_seconds=self._context.settings.stall_seconds,
            framing=ControlledFraming(self._content, partial(self._next_cursor, reading)),
            resumes=True,
        )

    def _next_cursor(self, reading: Reading) -> str:
        return cursor_text(self._context.clock.now(), reading.cursor)

    async def _within(self, head: Head, after_seq: Seq) -> Seq:
        """Return the seq if the log has what follows it, or its end for one past a closed log."""
        run_id = self._target.run_id
        if after_seq > head.last_seq:
            if not head.closed:
                here, end = offset_text(after_seq), offset_text(head.last_seq)
                raise CursorAheadError(run_id, here, end, name="offset")
            after_seq = head.last_seq
        if after_seq + 1 < head.first_seq:
            trimmed = TrimmedError(run_id, head.first_seq)
            raise await self._runs.audit.explain_trimmed(self._target, trimmed)
        return after_seq

    async def _page(self, head: Head, after_seq: Seq) -> tuple[bytes, Seq]:
        """Return the frames after ``after_seq`` that fit into a body, and the last seq of them."""
        parts: list[bytes] = []
        size_bytes, last_seq = 0, after_seq
        slices = read_slices(self._runs, self._target, Seq(after_seq + 1), head.last_seq)
        async with aclosing(slices):
            async for piece in slices:
                parts.append(piece.frames)
                size_bytes, last_seq = size_bytes + len(piece.frames), piece.last_seq
                if size_bytes >= BODY_BYTES:
                    break
        return b"".join(parts), last_seq

    def _response(self, frames: bytes, headers: dict[str, str]) -> Response:
        body, content_type = self._content.body(frames), self._content.content_type
        return Response(body, headers={**headers, "content-type": content_type})


def _headers(last_seq: Seq, *, up_to_date: bool = False, closed: bool) -> dict[str, str]:
    headers = {**SAFE_HEADERS, "stream-next-offset": offset_text(last_seq)}
    if up_to_date:
        headers["stream-up-to-date"] = "true"
    if closed:
        headers["stream-closed"] = "true"
    return headers


def _names(if_none_match: str | None, tag: str) -> bool:
    """Return whether a client has the body with this tag."""
    if if_none_match is None:
        return False
    names = {one.strip().removeprefix("W/") for one in if_none_match.split(",")}
    return tag in names or "*" in names


async def _disconnect(request: Request) -> None:
    """Return when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
