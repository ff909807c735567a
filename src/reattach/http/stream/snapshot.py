"""The response with a run's messages so far, which counts as a stream while it is sent."""

import asyncio
from contextlib import AsyncExitStack

from fastapi import Response
from starlette.types import Receive, Scope, Send

from reattach.domain.errors import ReattachError
from reattach.domain.ids import Seq
from reattach.http.errors import error_response
from reattach.http.middleware.access import ACCESS, Access
from reattach.http.stream.body import CONNECTION_EXTENSION
from reattach.records.base import Target
from reattach.runs.snapshot.sharing import SnapshotReader
from reattach.runs.snapshot.snapshots import Snapshots


class SnapshotResponse(Response):
    """Sends the snapshot of a run in pieces, each when the connection has room.

    ``as_of`` is the event whose snapshot it is; None: the newest one.

    A reader that reads nothing for ``stall_seconds`` is cut off. An error of ``Snapshots.begin``,
    or of the tenant's quota of streams, becomes an error response.
    """

    media_type = "application/json"

    def __init__(
        self,
        snapshots: Snapshots,
        target: Target,
        stall_seconds: float,
        *,
        as_of: Seq | None = None,
    ) -> None:
        super().__init__()
        self._snapshots = snapshots
        self._target = target
        self._stall_seconds = stall_seconds
        self._as_of = as_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access: Access | None = scope.get(ACCESS)
        async with AsyncExitStack() as stack:
            try:
                if access is not None:
                    access.use.open_stream()
                    stack.callback(access.use.close_stream)
                snapshot = await self._snapshots.begin(
                    self._target,
                    as_of=self._as_of,
                    system_messages=access is None or access.shows_system_messages,
                )
            except ReattachError as error:
                await error_response(error)(scope, receive, send)
                return
            stack.callback(snapshot.close)
            await self._send(snapshot, scope, send)

    async def _send(self, snapshot: SnapshotReader, scope: Scope, send: Send) -> None:
        lent = scope.get("extensions", {}).get(CONNECTION_EXTENSION)
        # Our own connection bounds by itself how long a client reads nothing.
        stall_seconds = self._stall_seconds if lent is None else None
        headers = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
            (b"content-length", b"%d" % snapshot.size_bytes),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        left_bytes = snapshot.size_bytes
        while left_bytes:
            piece = snapshot.take()
            left_bytes -= len(piece)
            async with asyncio.timeout(stall_seconds):
                await send(
                    {"type": "http.response.body", "body": piece, "more_body": left_bytes > 0}
                )
            await asyncio.sleep(0)  # A fast reader must not keep the event loop.
