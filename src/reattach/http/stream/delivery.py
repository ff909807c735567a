"""Delivery of a run's frames to one reader, until the run ends or the reader is cut off."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from typing_extensions import override

from reattach.domain.clock import Clock
from reattach.domain.errors import ReattachError
from reattach.domain.errors.stores import LogDamagedError
from reattach.domain.limits import REPLAY_TURN_BYTES
from reattach.http.stream.body import AsgiBody, Connection, Piece
from reattach.http.stream.framing import LETTA, Framing
from reattach.log.base import Slice
from reattach.runs.following.follow import Expiry, Following, Target
from reattach.runs.following.readers import CutReason, loss_of_rights
from reattach.runs.service import RunService

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StreamJob:
    """The run to stream, in which form, and how long its reader may read nothing."""

    runs: RunService
    target: Target
    clock: Clock
    stall_seconds: float
    framing: Framing = LETTA
    source: "Source | None" = None
    """Where the frames come from; None: the log of the run."""
    on_leave: Callable[[], object] = lambda: None
    """Called when the reader closes its connection before the end."""

    @property
    def frames(self) -> "Source":
        return self.runs if self.source is None else self.source


class Source(Protocol):
    """The frames of one run in some form, numbered from 1. ``RunService`` has those of its log."""

    def remainder(self, target: Target, cursor: int, *, max_events: int) -> Slice | None:
        """Return all frames after ``cursor`` if that is possible at once: see ``RunService``."""

    async def follow(
        self, target: Target, cursor: int, *, max_events: int, waits: bool
    ) -> Following:
        """Follow the run from ``cursor`` on: see ``RunService``."""


class Delivery(ABC):
    """Delivers what ``following`` yields to one reader: events, keepalives, and the end."""

    __slots__ = ("_announced", "_framing", "_job", "_settled", "following", "gone")

    def __init__(self, job: StreamJob, following: Following) -> None:
        self._job = job
        self._framing = job.framing
        self._settled = False
        self._announced: Expiry | None = None
        """The last announcement of the end of the reader's rights."""
        self.following = following
        self.gone = False
        """The reader went away."""

    @abstractmethod
    async def _write(self, body: bytes) -> None:
        """Write to the connection. Raises TimeoutError if the reader stalls."""

    async def advance(self) -> bool | None:
        """Send everything that is available and return None, or return how the stream ended.

        True: the body ends properly, with ``[DONE]``, the farewell of its form, or the announcement
        that its token has expired, or anywhere in a form that ``ends_properly``. False: it is cut
        off, because the reader is gone or stalled, or the log cannot be followed any longer.
        """
        return await self._send_opening() and await self._send_events()

    async def _send_opening(self) -> bool:
        """Send what is left of the opening, and return whether the body goes on.

        An announcement would be inside a frame of the opening, so it waits for its end.
        """
        following, framing, sent_bytes = self.following, self._framing, 0
        while opening := framing.take_opening():
            if following.revoked:
                return self._cut_off_without_rights()
            if following.expiry is Expiry.OVER and framing.is_within_frame:
                return self._cut_off(CutReason.TOKEN_EXPIRED, "its token has expired")
            if not await self._send(opening) or self.gone:
                return False
            sent_bytes += len(opening)
            if sent_bytes >= REPLAY_TURN_BYTES:
                sent_bytes = 0
                await asyncio.sleep(0)
        return True

    async def _send_events(self) -> bool | None:
        following, sent_bytes = self.following, 0
        while not self.gone:
            if following.revoked and not self._has_expired():
                return self._cut_off_without_rights()
            if following.expiry is not self._announced and not await self._announce():
                return self._announced is Expiry.OVER and not self.gone
            try:
                piece = await following.read()
            except ReattachError as error:
                is_damaged = isinstance(error, LogDamagedError)
                reason = CutReason.LOG_DAMAGED if is_damaged else CutReason.LOG_FAILED
                return self._cut_off(reason, error.detail)
            # Before the terminal group, because the SDKs stop at an error event, before [DONE].
            if following.closed and not await self._is_settled_in_time():
                return self._cut_off(
                    CutReason.NOT_SETTLED, "the end of the run is not recorded yet"
                )
            splice = self._framing.splice
            frames = piece.frames if splice is None else splice(piece)
            if frames:
                ended = await self._send_frames(frames)
                if ended is not None or self._may_write_at_once():
                    return ended
                sent_bytes += len(frames)
                if sent_bytes >= REPLAY_TURN_BYTES:
                    sent_bytes = 0
                    await asyncio.sleep(0)
            else:
                ended = await self._end_if_due()
                if ended is not None or not following.keepalive_due:
                    return ended
                if not await self._send(self._keepalive()):
                    return False
        return False

    async def _send_frames(self, frames: bytes) -> bool | None:
        """Send events; return how the stream ended, or None if it goes on."""
        return None if await self._send(frames) else False

    def _may_write_at_once(self) -> bool:
        """Return whether the next events can be sent without a task."""
        return False

    def _has_expired(self) -> bool:
        """Return whether the end of the reader's rights has come, which its stream announces.

        The watch of the keys may find an expired token before the timer of the readers does.
        """
        following = self.following
        if following.expires_at is not None:
            following.look_at_expiry(self._job.clock.now())
        return following.expiry is Expiry.OVER

    async def _announce(self) -> bool:
        """Tell the reader that its rights end; return whether the body goes on."""
        following, frame = self.following, self._framing.expiry_frame
        assert following.expires_at is not None, "it has an expiry"
        assert frame is not None, "its stream announces that"
        self._announced = following.expiry
        if following.expiry is Expiry.SOON:
            return await self._send(frame("expiring", following.expires_at))
        self._cut_off(CutReason.TOKEN_EXPIRED, "its token has expired")
        await self._end(frame("expired", following.expires_at))
        return False

    async def _end_if_due(self) -> bool | None:
        """End the body of a reader that has every event; None: it waits for further ones."""
        following = self.following
        if following.failure is not None:
            return self._cut_off(CutReason.LOG_FAILED, following.failure.detail)
        if following.released:
            ends_properly = self._cut_off(
                CutReason.RELEASED,
                "this server is shutting down, and another one took over the run",
            )
            farewell = self._framing.farewell
            return ends_properly if farewell is None else await self._end(farewell)
        if following.closed:
            return await self._end(self._framing.done(following.cursor))
        return True if following.rotated else None

    async def _is_settled_in_time(self) -> bool:
        # Asked once: when the last events are out the driver is gone, and the record would be read.
        if not self._settled:
            self._settled = await self._job.runs.is_settled_in_time(self._job.target)
        return self._settled

    async def _end(self, last: bytes) -> bool:
        """Send the last bytes of the body, after everything else was sent."""
        return await self._send(last)

    def _keepalive(self) -> bytes:
        return self._framing.keepalive(
            self._job.clock.now(), self.following.cursor, self._job.target.run_id
        )

    async def _send(self, body: bytes) -> bool:
        self.following.quiet_since = None
        try:
            await self._write(body)
        except TimeoutError:
            return self._cut_off_stalled()
        self.following.keepalive_due = False
        self.following.quiet_since = asyncio.get_running_loop().time()
        return True

    def _cut_off_without_rights(self) -> bool:
        lost = loss_of_rights(self.following.token_ends_at, self._job.clock.now())
        return self._cut_off(*lost)

    def _cut_off(self, reason: CutReason, detail: str) -> bool:
        """Note why the stream ends early, and return how, as ``advance`` then does."""
        self._job.runs.readers.note_cut(self.following, reason, detail)
        return self._framing.ends_properly and reason is not CutReason.STALLED

    def _cut_off_stalled(self) -> bool:
        seconds = self._job.stall_seconds
        return self._cut_off(CutReason.STALLED, f"it read nothing for {seconds:g} seconds")


class AsgiDelivery(Delivery):
    """Delivery in the task of the request, under any ASGI server."""

    __slots__ = ("_body", "_woken")

    def __init__(self, job: StreamJob, following: Following, body: AsgiBody) -> None:
        super().__init__(job, following)
        self._body = body
        self._woken = asyncio.Event()

    async def to_end(self) -> None:
        """Deliver until the end of the body, or until it is cut off."""
        self.following.wake = self._woken.set
        self._body.on_disconnect(self._leave)
        complete: bool | None = False
        try:
            while (complete := await self.advance()) is None:
                self.following.note_sent()
                await self._woken.wait()
                self._woken.clear()
        finally:
            if not complete:
                self._body.abort()
        if complete:
            await self._body.finish()

    def _leave(self) -> None:
        self.gone = True
        self._job.on_leave()
        self._woken.set()

    @override
    async def _write(self, body: bytes) -> None:
        await self._body.write(body)


class DetachedDelivery(Delivery):
    """Delivery on a lent connection, which is kept from the head of the response to its end.

    Data in memory is written without a task while the reader keeps up; when the reader has
    everything, the code that adds an event to the tail writes it. A task exists only while
    something must be awaited: the store, a keepalive, the record of the run's end. ``release`` is
    called at the end.
    """

    __slots__ = ("_busy", "_connection", "_last", "_missed", "_release", "_task", "_then")

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
        self._last = b""
        """The last bytes of the body, once ``advance`` has reached its end."""
        self._missed = False
        """A wake-up arrived while the delivery was busy."""
        self._task: asyncio.Task[object] | None = None
        self._then: Callable[[], object] | None = None
        """The step to continue with when there is room again."""

    def begin(self) -> None:
        """Send the available events of a response that has begun."""
        self._connection.detach()
        self.following.wake = self._wake
        self.following.splice = self._framing.splice
        self._connection.on_disconnect(self._on_disconnect)
        self._write_or_abort()

    def _on_disconnect(self) -> None:
        self.gone = True
        if self._connection.stalled:
            self._cut_off_stalled()
        else:
            self._job.on_leave()
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
            logger.exception("delivery failed", run_id=self._job.target.run_id)
            self._cut_off(CutReason.ERROR, "the server failed")
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
            if opening := self._framing.take_opening():
                self._connection.write(opening)
                written_bytes += len(opening)
                continue
            frames = self._read_now()
            if frames is None:
                break
            if following.finished:
                self._finish(*frames, self._framing.done(following.cursor))
                return
            if not any(frames):
                self._go_idle(sent=written_bytes > 0)
                return
            self._connection.write(*frames)
            written_bytes += sum(map(len, frames))
        self._connection.flush()
        self._task = asyncio.get_running_loop().create_task(self._continue())

    def _read_now(self) -> tuple[Piece, ...] | None:
        """Return the next events as they are sent; None if only the store has them."""
        following, splice = self.following, self._framing.splice
        if splice is None:
            pieces = following.pieces()
            if pieces is not None:
                return pieces.frames
            found = following.view() or following.read_now()
            return None if found is None else (found.frames,)
        piece = following.read_now()
        return None if piece is None else (splice(piece),)

    def _must_wait(self) -> bool:
        """Return whether the next step may block, or is the end."""
        following = self.following
        return (
            self.gone
            or following.keepalive_due
            or following.released
            or following.rotated
            or following.revoked
            or following.expiry is not self._announced
            or following.failure is not None
            or (following.closed and not self._job.runs.is_known_as_settled(self._job.target))
        )

    @override
    def _may_write_at_once(self) -> bool:
        following = self.following
        has_next = following.has_next_in_memory or (
            self._framing.splice is None and following.has_pieces
        )
        return has_next and not self._must_wait()

    def _go_idle(self, *, sent: bool) -> None:
        """Wait for the next event without a task."""
        self._connection.flush()
        if sent or self.following.quiet_since is None:
            self.following.quiet_since = asyncio.get_running_loop().time()
        self._busy = False
        self.following.note_sent()
        self.following.sink = self._connection.try_write

    async def _continue(self) -> None:
        complete: bool | None = False
        try:
            complete = await self._advance_until_idle()
        except Exception:
            logger.exception("delivery failed", run_id=self._job.target.run_id)
            self._cut_off(CutReason.ERROR, "the server failed")
        finally:
            if complete is None:
                self._task = None
                if self._may_write_at_once():
                    self._write_or_abort()
                else:
                    self._go_idle(sent=False)
            elif complete:
                self._finish(self._last)
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
    async def _send_frames(self, frames: bytes) -> bool | None:
        if self.following.finished:  # One write for the last events and the end wakes once.
            return await self._end(frames + self._framing.done(self.following.cursor))
        return await super()._send_frames(frames)

    @override
    async def _end(self, last: bytes) -> bool:
        await self._room()
        self._last = last  # ``finish`` sends it together with the end of the body.
        return not self.gone

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
