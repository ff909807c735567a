"""How a run's frames reach one reader, and when that is at an end."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog
from starlette.types import Send
from typing_extensions import override

from reattach.clock import Clock
from reattach.errors import ReattachError
from reattach.ids import new_uuid
from reattach.limits import REPLAY_TURN_BYTES
from reattach.runs.follow import Following, Target
from reattach.runs.service import RunService
from reattach.wire import letta
from reattach.wire.sse import DONE

logger = structlog.get_logger(__name__)

CONNECTION_EXTENSION: Final = "reattach.connection"
"""ASGI extension: the connection of a request, as a ``Connection``."""


class Connection(Protocol):
    """What a server lends of a connection, for the time of one response."""

    def keep(self) -> None:
        """Take the response, whose head was sent, out of the hands of the ASGI application.

        From now on it ends by ``finish`` or ``abort``, and not when the application returns.
        """

    def write(self, body: bytes) -> None:
        """Send more of the body, of a kept response; nothing if the other side is gone."""

    def finish(self) -> None:
        """The body is whole: the connection may have its next request."""

    def abort(self) -> None:
        """Drop it with whatever is unsent."""

    def has_room(self) -> bool:
        """Whether a write would be taken at once."""

    def room(self) -> Awaitable[None]:
        """Return when there is room, or the other side is gone."""

    def untaken_bytes(self) -> int:
        """What was sent and the other side has not confirmed to have."""

    def when_left(self, call: Callable[[], None] | None) -> None:
        """Call it once when the other side is gone, or at once if it is; None calls nothing."""


class Delivery(ABC):
    """Brings what ``following`` gives to one reader: events, the ends of its silence, the end."""

    __slots__ = (
        "_clock", "_ending_told", "_runs", "_stall_seconds", "_target", "following", "gone",
    )  # fmt: skip

    def __init__(
        self,
        runs: RunService,
        target: Target,
        clock: Clock,
        following: Following,
        stall_seconds: float,
    ) -> None:
        self._runs = runs
        self._target = target
        self._clock = clock
        self._stall_seconds = stall_seconds
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
            elif following.failure is not None:
                return self._cut_off(following.failure.detail)
            elif following.released:
                return self._cut_off("the server is going away, and another one has the run")
            elif following.closed:
                return await self._send(DONE)
            elif following.keepalive_due:
                if not await self._send(self._keepalive()):
                    return False
            else:
                return None
        return False

    async def _is_ending_told(self) -> bool:
        # Asked once: when the last events are out the worker is gone, and the record would be read.
        if not self._ending_told:
            self._ending_told = await self._runs.ending_told(self._target)
        return self._ending_told

    def _keepalive(self) -> bytes:
        return letta.keepalive(
            f"ping-{new_uuid()}", self._clock.now(), self.following.cursor, self._target.run_id
        )

    async def _send(self, body: bytes) -> bool:
        self.following.quiet_since = None
        try:
            await self._write(body)
        except TimeoutError:
            return self._cut_off(f"took nothing for {self._stall_seconds} seconds")
        self.following.keepalive_due = False
        self.following.quiet_since = asyncio.get_running_loop().time()
        return True

    def _cut_off(self, reason: str) -> bool:
        logger.info("reader cut off", run_id=self._target.run_id, reason=reason)
        return False


class AsgiDelivery(Delivery):
    """Under any ASGI server."""

    __slots__ = ("_asgi_send", "_woken")

    def __init__(
        self,
        runs: RunService,
        target: Target,
        clock: Clock,
        following: Following,
        stall_seconds: float,
        send: Send,
    ) -> None:
        super().__init__(runs, target, clock, following, stall_seconds)
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
        async with asyncio.timeout(self._stall_seconds):
            await self._asgi_send({"type": "http.response.body", "body": body, "more_body": True})


class KeptDelivery(Delivery):
    """On a connection that is lent, and kept from the head of the response to its end.

    While there is nothing to send it costs no task: new events are written by whoever learns of
    them. A task is there only for a reader that is behind or slow, for a keepalive, and the end.
    ``leave`` is called when it is over.
    """

    __slots__ = ("_busy", "_connection", "_leave", "_missed", "_task")

    def __init__(
        self,
        runs: RunService,
        target: Target,
        clock: Clock,
        following: Following,
        stall_seconds: float,
        connection: Connection,
        leave: Callable[[], Awaitable[object]],
    ) -> None:
        super().__init__(runs, target, clock, following, stall_seconds)
        self._connection = connection
        self._leave = leave
        self._busy = True
        self._missed = False
        """Something happened while it was busy."""
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Send what there is. Returns when there is nothing more, at the end or not."""
        self._connection.keep()
        self.following.wake = self._wake
        self._connection.when_left(self._left)
        await self._go_on()

    def _left(self) -> None:
        self.gone = True
        self._wake()

    def _wake(self) -> None:
        if self._busy:
            self._missed = True
        else:
            self._busy = True
            self.following.sink = None
            self._task = asyncio.get_running_loop().create_task(self._go_on())

    async def _go_on(self) -> None:
        complete: bool | None = False
        try:
            complete = await self._advance_until_idle()
        except Exception:
            logger.exception("reader cut off", run_id=self._target.run_id)
        finally:
            if complete is None:
                self._busy = False
                self._task = None
                self.following.sink = self._push
            else:
                await self._end(whole=complete)

    async def _advance_until_idle(self) -> bool | None:
        while True:
            self._missed = False
            complete = await self.advance()
            if complete is not None or not self._missed:
                return complete

    async def _end(self, *, whole: bool) -> None:
        self._connection.when_left(None)
        if whole:
            self._connection.finish()
        else:
            self._connection.abort()
        await self._leave()

    def _push(self, frames: bytes) -> bool:
        if self.gone or not self._connection.has_room():
            return False
        self._connection.write(frames)
        return True

    @override
    async def _write(self, body: bytes) -> None:
        if not self._connection.has_room():
            await self._room()
        self._connection.write(body)

    async def _room(self) -> None:
        """Wait for it; raises TimeoutError if nothing at all is taken for the stall time."""
        untaken_bytes = self._connection.untaken_bytes()
        while True:
            try:
                async with asyncio.timeout(self._stall_seconds):
                    await self._connection.room()
            except TimeoutError:
                before_bytes, untaken_bytes = untaken_bytes, self._connection.untaken_bytes()
                if untaken_bytes >= before_bytes:
                    raise
            else:
                return
