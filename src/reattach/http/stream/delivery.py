"""How a run's frames reach one reader, and when that is at an end."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
from starlette.types import Message, Send
from typing_extensions import override

from reattach.domain.clock import Clock
from reattach.domain.errors import ReattachError
from reattach.domain.ids import new_uuid
from reattach.domain.limits import REPLAY_TURN_BYTES
from reattach.runs.follow import Following, Target
from reattach.runs.service import RunService
from reattach.wire import letta
from reattach.wire.sse import DONE

logger = structlog.get_logger(__name__)

CONNECTION_EXTENSION: Final = "reattach.connection"
"""ASGI extension: the connection of a request, as a ``Connection``."""


Piece = bytes | memoryview
"""Of a body. Memory that is viewed does not change any more."""


class Connection(Protocol):
    """What a server lends of a connection, for the time of one response."""

    async def begin(self, send: Send, start: Message) -> None:
        """Send the head ``start``, as ``send`` would; it may wait for what is sent next."""

    def keep(self) -> None:
        """Take the response, which was begun, out of the hands of the ASGI application.

        From now on it ends by ``finish`` or ``abort``, and not when the application returns.
        """

    def flush(self) -> None:
        """Send a head that waits: nothing follows at once."""

    def write(self, body: Piece) -> None:
        """Send more of the body; nothing if the other side is gone."""

    def finish(self, *rest: Piece) -> None:
        """Send the rest of the body: it is whole, and the connection may have its next request."""

    def abort(self) -> None:
        """Drop it with whatever is unsent."""

    def has_room(self) -> bool:
        """Whether a write would be taken at once."""

    def when_room(self, call: Callable[[], None] | None) -> None:
        """Call it once when there is room, which there is not at present; None calls nothing."""

    @property
    def stalled(self) -> bool:
        """Whether the server gave the connection up because the client took nothing."""

    def when_left(self, call: Callable[[], None] | None) -> None:
        """Call it once when the other side is gone, or at once if it is; None calls nothing."""


@dataclass(frozen=True, slots=True)
class StreamJob:
    """What is to be brought, and how patiently."""

    runs: RunService
    target: Target
    clock: Clock
    stall_seconds: float


class Delivery(ABC):
    """Brings what ``following`` gives to one reader: events, the ends of its silence, the end."""

    __slots__ = ("_ending_told", "_job", "following", "gone")

    def __init__(self, job: StreamJob, following: Following) -> None:
        self._job = job
        self._ending_told = False
        self.following = following
        self.gone = False
        """The reader went away."""

    @abstractmethod
    async def _write(self, body: bytes) -> None:
        """Raises TimeoutError if the reader takes nothing for the stall time."""

    async def advance(self) -> bool | None:
        """Send all that there is to send at present, and return None.

        True: everything was sent, ``[DONE]`` included. False: nothing more will be, before the
        end, as the reader is gone, or takes nothing, or the log can not be followed any longer.
        """
        following, sent_bytes = self.following, 0
        while not self.gone:
            if following.revoked:
                return self._cut_off("its key was revoked or has expired")
            try:
                piece = await following.read()
            except ReattachError as error:
                return self._cut_off(error.detail)
            # Before the terminal group, as the SDKs stop at an error event and see no [DONE].
            if following.closed and not await self._is_ending_told():
                return self._cut_off("the record does not say yet how the run ended")
            if piece.frames:
                if not await self._send(piece.frames):
                    return False
                sent_bytes += len(piece.frames)
                if sent_bytes >= REPLAY_TURN_BYTES:
                    sent_bytes = 0
                    await asyncio.sleep(0)
            elif (obstacle := self._obstacle()) is not None:
                return self._cut_off(obstacle)
            elif following.closed:
                return await self._done()
            elif following.keepalive_due:
                if not await self._send(self._keepalive()):
                    return False
            else:
                return None
        return False

    def _obstacle(self) -> str | None:
        """Why the reader cannot get the next events."""
        if self.following.failure is not None:
            return self.following.failure.detail
        if self.following.released:
            return "the server is going away, and another one has the run"
        return None

    async def _is_ending_told(self) -> bool:
        # Asked once: when the last events are out the driver is gone, and the record would be read.
        if not self._ending_told:
            self._ending_told = await self._job.runs.wait_until_recorded(self._job.target)
        return self._ending_told

    async def _done(self) -> bool:
        """Everything was sent, but for the word that it was."""
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
            return self._cut_off(f"took nothing for {self._job.stall_seconds} seconds")
        self.following.keepalive_due = False
        self.following.quiet_since = asyncio.get_running_loop().time()
        return True

    def _cut_off(self, reason: str) -> bool:
        logger.info("reader cut off", run_id=self._job.target.run_id, reason=reason)
        return False


class AsgiDelivery(Delivery):
    """Under any ASGI server."""

    __slots__ = ("_asgi_send", "_woken")

    def __init__(self, job: StreamJob, following: Following, send: Send) -> None:
        super().__init__(job, following)
        self._asgi_send = send
        self._woken = asyncio.Event()

    async def to_end(self) -> bool:
        """Whether the body was sent whole."""
        self.following.wake = self._woken.set
        while True:
            self._woken.clear()
            complete = await self.advance()
            if complete is not None:
                return complete
            await self._woken.wait()

    def leave(self) -> None:
        self.gone = True
        self._woken.set()

    @override
    async def _write(self, body: bytes) -> None:
        async with asyncio.timeout(self._job.stall_seconds):
            await self._asgi_send({"type": "http.response.body", "body": body, "more_body": True})


class KeptDelivery(Delivery):
    """On a connection that is lent, and kept from the head of the response to its end.

    What is in memory is written without a task, as long as the reader takes it; and while there is
    nothing to send, new events are written by whoever learns of them. A task is there only for
    what has to be waited for: the store, a keepalive, the record of the run's end. ``leave`` is
    called when it is over.
    """

    __slots__ = ("_busy", "_connection", "_leave", "_missed", "_task", "_then")

    def __init__(
        self,
        job: StreamJob,
        following: Following,
        connection: Connection,
        leave: Callable[[], Coroutine[Any, Any, object]],
    ) -> None:
        super().__init__(job, following)
        self._connection = connection
        self._leave = leave
        self._busy = True
        self._missed = False
        """Something happened while it was busy."""
        self._task: asyncio.Task[object] | None = None
        self._then: Callable[[], object] | None = None
        """What goes on when there is room again."""

    def begin(self) -> None:
        """Send what there is, of a response that was begun."""
        self._connection.keep()
        self.following.wake = self._wake
        self._connection.when_left(self._left)
        self._pour()

    def _left(self) -> None:
        self.gone = True
        if self._connection.stalled:
            self._cut_off(f"took nothing for {self._job.stall_seconds} seconds")
        if self._then is None:
            self._wake()
        else:
            self._room_again()

    def _wake(self) -> None:
        if self._busy:
            self._missed = True
        else:
            self._busy = True
            self.following.sink = None
            asyncio.get_running_loop().call_soon(self._pour)

    def _pour(self) -> None:
        try:
            self._pour_what_is_there()
        except Exception:
            logger.exception("reader cut off", run_id=self._job.target.run_id)
            self.gone = True
            self._task = asyncio.get_running_loop().create_task(self._go_on())

    def _pour_what_is_there(self) -> None:
        following, poured_bytes = self.following, 0
        while not self._must_wait():
            if not self._connection.has_room():
                following.quiet_since = None
                self._when_room(self._pour)
                return
            if poured_bytes >= REPLAY_TURN_BYTES:
                asyncio.get_running_loop().call_soon(self._pour)
                return
            piece = following.view() or following.read_now()
            if piece is None:
                break
            if following.finished:
                self._finish(piece.frames, DONE)
                return
            if not piece.frames:
                self._rest(sent=poured_bytes > 0)
                return
            self._connection.write(piece.frames)
            poured_bytes += len(piece.frames)
        self._connection.flush()
        self._task = asyncio.get_running_loop().create_task(self._go_on())

    def _must_wait(self) -> bool:
        """Whether there is something to be done that takes its time, or is the end."""
        following = self.following
        return (
            self.gone
            or following.keepalive_due
            or following.released
            or following.revoked
            or following.failure is not None
            or (following.closed and self._job.target.status.is_active)
        )

    def _rest(self, *, sent: bool) -> None:
        """There is nothing more to send at present."""
        self._connection.flush()
        if sent or self.following.quiet_since is None:
            self.following.quiet_since = asyncio.get_running_loop().time()
        self._busy = False
        self.following.sink = self._push

    async def _go_on(self) -> None:
        complete: bool | None = False
        try:
            complete = await self._advance_until_idle()
        except Exception:
            logger.exception("reader cut off", run_id=self._job.target.run_id)
        finally:
            if complete is None:
                self._task = None
                self._rest(sent=False)
            elif complete:
                self._finish(DONE)
            else:
                self._connection.when_left(None)
                self._connection.abort()
                await self._leave()

    async def _advance_until_idle(self) -> bool | None:
        while True:
            self._missed = False
            complete = await self.advance()
            if complete is not None or not self._missed:
                return complete

    def _finish(self, *rest: Piece) -> None:
        self._connection.when_left(None)
        self._connection.finish(*rest)
        self._task = asyncio.get_running_loop().create_task(self._leave())

    def _push(self, frames: bytes) -> bool:
        if self.gone or not self._connection.has_room():
            return False
        self._connection.write(frames)
        return True

    @override
    async def _write(self, body: bytes) -> None:
        await self._room()
        self._connection.write(body)

    @override
    async def _done(self) -> bool:
        await self._room()
        return not self.gone  # It goes out in one piece with the end of the body.

    async def _room(self) -> None:
        """Return when there is room, or the reader is gone: the connection bounds the wait."""
        if not self.gone and not self._connection.has_room():
            room = asyncio.Event()
            self._when_room(room.set)
            await room.wait()

    def _when_room(self, then: Callable[[], object]) -> None:
        """Call it when there is room, or the reader is gone."""
        self._then = then
        self._connection.when_room(self._room_again)

    def _room_again(self) -> None:
        then, self._then = self._then, None
        self._connection.when_room(None)
        if then is not None:
            then()
