"""The body of a stream: a run's frames from a cursor on, live until its end.

A plain ASGI response that works under any server. Where ``http.protocol`` lends the connection
(see ``CONNECTION_EXTENSION``), a reader that must be left is cut off at once, one that is slow is
told from one that takes nothing, and one that waits costs no task.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from fastapi import Response
from starlette.types import Receive, Scope, Send

from reattach.clock import Clock
from reattach.errors import ReattachError
from reattach.events import RunStatus
from reattach.http.delivery import (
    CONNECTION_EXTENSION,
    AsgiDelivery,
    Connection,
    KeptDelivery,
)
from reattach.http.errors import error_response
from reattach.limits import REPLAY_SLICE_EVENTS
from reattach.runs.follow import Following, Target
from reattach.runs.service import RunService

_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


class RunStream(Response):
    """Streams the run from ``cursor``.

    The headers go out at once. The terminal group goes out when the run's record says how it
    ended. The body ends with ``[DONE]`` exactly when everything up to the end of the closed log
    was sent; in every other case
    (the reader takes nothing for ``stall_seconds``, the log can not be followed any longer) the
    connection is dropped without it, and the reader may resume. A reader that goes away changes
    nothing for the run.

    What ``RunService.follow`` raises is answered as the error that it is, instead of a stream.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        runs: RunService,
        target: Target,
        clock: Clock,
        *,
        cursor: int = 0,
        max_events: int = REPLAY_SLICE_EVENTS,
        include_pings: bool,
        stall_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._runs = runs
        self._target = target
        self._clock = clock
        self._cursor = cursor
        self._max_events = max_events
        self._include_pings = include_pings
        self._stall_seconds = stall_seconds
        self._extra_headers = headers or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        follow = self._runs.follow(self._target, self._cursor, max_events=self._max_events)
        try:
            following = await follow.__aenter__()
        except ReattachError as error:
            await error_response(error)(scope, receive, send)
            return

        async def leave() -> None:
            self._runs.watch.remove(following)
            await follow.__aexit__(None, None, None)

        connection: Connection | None = scope.get("extensions", {}).get(CONNECTION_EXTENSION)
        try:
            await send(self._start(following))
        except BaseException:
            await follow.__aexit__(*sys.exc_info())
            raise
        self._runs.watch.add(following, pings=self._include_pings)
        if connection is not None:
            delivery = KeptDelivery(*self._parts(following), connection, leave)
            await delivery.begin()
            return
        try:
            await self._stream(following, receive, send)
        finally:
            await leave()

    def _parts(self, following: Following) -> tuple[RunService, Target, Clock, Following, float]:
        return self._runs, self._target, self._clock, following, self._stall_seconds

    async def _stream(self, following: Following, receive: Receive, send: Send) -> None:
        delivery = AsgiDelivery(*self._parts(following), send)
        async with _noticing(receive, delivery):
            complete = await delivery.to_end()
        if complete:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        # Else the server sees a response that was left off, and drops the connection.

    def _start(self, following: Following) -> dict[str, object]:
        status = self._target.status
        if status is RunStatus.CREATED:  # Its log is open by now.
            status = RunStatus.RUNNING
        headers = {
            **_HEADERS,
            "x-run-id": self._target.run_id,
            "x-run-status": status.value,
            "x-stream-starts-after": str(following.cursor),
            **self._extra_headers,
        }
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        return {"type": "http.response.start", "status": 200, "headers": raw}


@asynccontextmanager
async def _noticing(receive: Receive, delivery: AsgiDelivery) -> AsyncIterator[None]:
    """Notice that the reader went away: a send after that does not tell."""

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        delivery.leave()

    listener = asyncio.create_task(listen())
    try:
        yield
    finally:
        listener.cancel()
