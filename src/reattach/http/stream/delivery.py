"""Delivery of a run's frames to one reader, until the run ends or the reader is cut off."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
from starlette.types import Message, Receive, Send
from typing_extensions import override

from reattach.domain.clock import Clock
from reattach.domain.errors import ReattachError
from reattach.domain.errors.stores import LogDamagedError
from reattach.domain.ids import new_uuid
from reattach.domain.limits import REPLAY_TURN_BYTES
from reattach.runs.follow import Following, Target
from reattach.runs.service import RunService
from reattach.wire import letta
from reattach.wire.sse import DONE

logger = structlog.get_logger(__name__)

CONNECTION_EXTENSION: Final = "reattach.connection"
"""ASGI extension that provides the ``Connection`` of a request."""


Piece = bytes | memoryview
"""Part of a body. The memory behind a memoryview does not change any more."""


class Connection(Protocol):
    """The client connection, lent by the server for one response."""

    async def begin(self, send: Send, start: Message) -> None:
        """Send the head ``start``, as ``send`` would; it may be held back until more is sent."""

    def detach(self) -> None:
        """Detach the response, which has begun, from the ASGI application.

        From now on it ends with ``finish`` or ``abort``, not when the application returns.
        """

    def flush(self) -> None:
        """Send a head that is held back, because no body follows at once."""

    def write(self, body: Piece) -> None:
        """Send more of the body; does nothing if the client is gone."""

    def try_write(self, body: Piece) -> bool:
        """Write unless the client is gone or there is no room; return whether it was written."""

    def finish(self, *rest: Piece) -> None:
        """Send the rest of the body, which is then complete, and allow the next request."""

    def abort(self) -> None:
        """Drop the connection with everything unsent."""

    def is_writable(self) -> bool:
        """Return whether the connection accepts a write without buffering in this process."""

    def on_writable(self, call: Callable[[], None] | None) -> None:
        """Call ``call`` once when there is room again; None cancels that."""

    @property
    def stalled(self) -> bool:
        """Whether the server dropped the connection because the client read nothing."""

    def on_disconnect(self, call: Callable[[], None] | None) -> None:
        """Call ``call`` once when the client is gone, or at once if it is; None cancels that."""


@dataclass(frozen=True, slots=True)
class StreamJob:
    """The run to stream, and how long its reader may read nothing."""

    runs: RunService
    target: Target
    clock: Clock
    stall_seconds: float


class Delivery(ABC):
    """Delivers what ``following`` yields to one reader: events, keepalives, and the end."""

    __slots__ = ("_job", "_settled", "following", "gone")

    def __init__(self, job: StreamJob, following: Following) -> None:
        self._job = job
        self._settled = False
        self.following = following
        self.gone = False
        """The reader went away."""

    @abstractmethod
    async def _write(self, body: bytes) -> None:
        """Write to the connection. Raises TimeoutError if the reader stalls."""

    async def advance(self) -> bool | None:
        """Send everything that is available and return None, or return how the stream ended.

        True: everything was sent, including ``[DONE]``. False: nothing more will be sent, because
        the reader is gone or stalled, or the log cannot be followed any longer.
        """
        following, sent_bytes = self.following, 0
        while not self.gone:
            if following.revoked:
                return self._log_cut_off("its key was revoked or has expired")
            try:
                piece = await following.read()
            except ReattachError as error:
                is_damaged = isinstance(error, LogDamagedError)
                return self._log_cut_off(error.detail, is_damaged=is_damaged)
            # Before the terminal group, because the SDKs stop at an error event, before [DONE].
            if following.closed and not await self._is_settled_in_time():
                return self._log_cut_off("the end of the run is not recorded yet")
            if piece.frames:
                if not await self._send(piece.frames):
                    return False
                sent_bytes += len(piece.frames)
                if sent_bytes >= REPLAY_TURN_BYTES:
                    sent_bytes = 0
                    await asyncio.sleep(0)
            elif (obstacle := self._obstacle()) is not None:
                return self._log_cut_off(obstacle)
            elif following.closed:
                return await self._done()
            elif following.keepalive_due:
                if not await self._send(self._keepalive()):
                    return False
            else:
                return None
        return False

    def _obstacle(self) -> str | None:
        """Return why the reader cannot get further events, or None."""
        if self.following.failure is not None:
            return self.following.failure.detail
        if self.following.released:
            return "this server is shutting down, and another one took over the run"
        return None

    async def _is_settled_in_time(self) -> bool:
        # Asked once: when the last events are out the driver is gone, and the record would be read.
        if not self._settled:
            self._settled = await self._job.runs.is_settled_in_time(self._job.target)
        return self._settled

    async def _done(self) -> bool:
        """Send ``[DONE]``, after everything else was sent."""
        return await self._send(DONE)

    def _keepalive(self) -> bytes:
        return letta.keepalive(
            f"ping-{new_uuid()}",
            self._job.clock.now(),
            self.following.cursor,
            self._job.target.run_id,
        )

    async def _send(self, body: bytes) -> bool:
        self.following.quiet_since = None
        try:
            await self._write(body)
        except TimeoutError:
            return self._log_cut_off(f"it read nothing for {self._job.stall_seconds:g} seconds")
        self.following.keepalive_due = False
        self.following.quiet_since = asyncio.get_running_loop().time()
        return True

    def _log_cut_off(self, reason: str, *, is_damaged: bool = False) -> bool:
        """Log why the stream ends early, and return False, as ``advance`` then does."""
        log = logger.warning if is_damaged else logger.info
        log("reader cut off", run_id=self._job.target.run_id, reason=reason)
        return False


class AsgiDelivery(Delivery):
    """Delivery through ``send``, under any ASGI server."""

    __slots__ = ("_asgi_send", "_woken")

    def __init__(self, job: StreamJob, following: Following, send: Send) -> None:
        super().__init__(job, following)
        self._asgi_send = send
        self._woken = asyncio.Event()

    async def to_end(self, receive: Receive) -> None:
        """Deliver until the end. Without the end of the body, the server drops the connection."""
        self.following.wake = self._woken.set
        listener = asyncio.create_task(self._listen(receive))
        try:
            while (complete := await self.advance()) is None:
                await self._woken.wait()
                self._woken.clear()
        finally:
            listener.cancel()
        if complete:
            await self._asgi_send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _listen(self, receive: Receive) -> None:
        """Wait for the reader to disconnect, because ``send`` does not report that."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._woken.set()

    @override
    async def _write(self, body: bytes) -> None:
        async with asyncio.timeout(self._job.stall_seconds):
            await self._asgi_send({"type": "http.response.body", "body": body, "more_body": True})


class DetachedDelivery(Delivery):
    """Delivery on a lent connection, which is kept from the head of the response to its end.

    Data in memory is written without a task while the reader keeps up; when the reader has
    everything, the code that adds an event to the tail writes it. A task exists only while
    something must be awaited: the store, a keepalive, the record of the run's end. ``release`` is
    called at the end.
    """

    __slots__ = ("_busy", "_connection", "_missed", "_release", "_task", "_then")

    def __init__(
        self,
        job: StreamJob,
        following: Following,
        connection: Connection,
        release: Callable[[], Coroutine[Any, Any, object]],
    ) -> None:
        super().__init__(job, following)
        self._connection = connection
        self._release = release
        self._busy = True
        self._missed = False
        """A wake-up arrived while the delivery was busy."""
        self._task: asyncio.Task[object] | None = None
        self._then: Callable[[], object] | None = None
        """The step to continue with when there is room again."""

    def begin(self) -> None:
        """Send the available events of a response that has begun."""
        self._connection.detach()
        self.following.wake = self._wake
        self._connection.on_disconnect(self._on_disconnect)
        self._write_or_abort()

    def _on_disconnect(self) -> None:
        self.gone = True
        if self._connection.stalled:
            self._log_cut_off(f"it read nothing for {self._job.stall_seconds:g} seconds")
        if self._then is None:
            self._wake()
        else:
            self._resume()

    def _wake(self) -> None:
        if self._busy:
            self._missed = True
        else:
            self._busy = True
            self.following.sink = None
            asyncio.get_running_loop().call_soon(self._write_or_abort)

    def _write_or_abort(self) -> None:
        try:
            self._write_available()
        except Exception:
            logger.exception("reader cut off", run_id=self._job.target.run_id)
            self.gone = True
            self._task = asyncio.get_running_loop().create_task(self._continue())

    def _write_available(self) -> None:
        following, written_bytes = self.following, 0
        while not self._must_wait():
            if not self._connection.is_writable():
                following.quiet_since = None
                self._when_room(self._write_or_abort)
                return
            if written_bytes >= REPLAY_TURN_BYTES:
                asyncio.get_running_loop().call_soon(self._write_or_abort)
                return
            piece = following.view() or following.read_now()
            if piece is None:
                break
            if following.finished:
                self._finish(piece.frames, DONE)
                return
            if not piece.frames:
                self._go_idle(sent=written_bytes > 0)
                return
            self._connection.write(piece.frames)
            written_bytes += len(piece.frames)
        self._connection.flush()
        self._task = asyncio.get_running_loop().create_task(self._continue())

    def _must_wait(self) -> bool:
        """Return whether the next step may block, or is the end."""
        following = self.following
        return (
            self.gone
            or following.keepalive_due
            or following.released
            or following.revoked
            or following.failure is not None
            or (following.closed and self._job.target.status.is_active)
        )

    def _go_idle(self, *, sent: bool) -> None:
        """Wait for the next event without a task."""
        self._connection.flush()
        if sent or self.following.quiet_since is None:
            self.following.quiet_since = asyncio.get_running_loop().time()
        self._busy = False
        self.following.sink = self._connection.try_write

    async def _continue(self) -> None:
        complete: bool | None = False
        try:
            complete = await self._advance_until_idle()
        except Exception:
            logger.exception("reader cut off", run_id=self._job.target.run_id)
        finally:
            if complete is None:
                self._task = None
                self._go_idle(sent=False)
            elif complete:
                self._finish(DONE)
            else:
                self._connection.on_disconnect(None)
                self._connection.abort()
                await self._release()

    async def _advance_until_idle(self) -> bool | None:
        while True:
            self._missed = False
            complete = await self.advance()
            if complete is not None or not self._missed:
                return complete

    def _finish(self, *rest: Piece) -> None:
        self._connection.on_disconnect(None)
        self._connection.finish(*rest)
        self._task = asyncio.get_running_loop().create_task(self._release())

    @override
    async def _write(self, body: bytes) -> None:
        await self._room()
        self._connection.write(body)

    @override
    async def _done(self) -> bool:
        await self._room()
        return not self.gone  # ``finish`` sends [DONE] together with the end of the body.

    async def _room(self) -> None:
        """Return when there is room or the reader is gone; the connection bounds the wait."""
        if not self.gone and not self._connection.is_writable():
            room = asyncio.Event()
            self._when_room(room.set)
            await room.wait()

    def _when_room(self, then: Callable[[], object]) -> None:
        """Call ``then`` when there is room or the reader is gone."""
        self._then = then
        self._connection.on_writable(self._resume)

    def _resume(self) -> None:
        then, self._then = self._then, None
        self._connection.on_writable(None)
        if then is not None:
            then()
