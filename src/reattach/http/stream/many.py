"""One response with the streams of many runs, each from its own cursor to its end."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import msgspec
import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

from reattach.domain.clock import Clock
from reattach.domain.errors import ReattachError, StoreUnavailableError, TrimmedError
from reattach.domain.errors.stores import EventsLostError, LogDamagedError
from reattach.domain.ids import TenantId, new_uuid
from reattach.domain.limits import REPLAY_SLICE_BYTES
from reattach.http.client_name import client_of
from reattach.http.errors import error_members, error_response
from reattach.http.middleware.access import ACCESS, Access
from reattach.http.middleware.followed import FOLLOWED
from reattach.http.stream.body import (
    CONNECTION_EXTENSION,
    AsgiBody,
    Body,
    Connection,
    LentBody,
)
from reattach.http.stream.framing import LETTA
from reattach.http.stream.response import require_background
from reattach.http.stream.resumes import count_failed_resume, count_resume
from reattach.log.base import Slice
from reattach.runs.following.follow import Following, Target, gone_error
from reattach.runs.following.readers import CutReason, Transport, loss_of_rights
from reattach.runs.service import RunService
from reattach.wire.event_source import KEEPALIVE, EventIds, error_frame, ping_frame
from reattach.wire.letta import head
from reattach.wire.sse import data_frame

logger = structlog.get_logger(__name__)

_LOOKUPS_AT_ONCE: Final = 8
"""Runs of one request that are looked up at a time, so that others get at the records too."""


class Cursor(NamedTuple):
    """A run to follow, and the last of its events that the client has."""

    run_id: str
    starting_after: int


@dataclass(frozen=True, slots=True)
class ManyJob:
    """The runs that one client follows over one connection."""

    runs: RunService
    tenant: TenantId
    clock: Clock
    cursors: Sequence[Cursor]
    named_pings: bool
    """Whether keepalives are named events rather than comments."""
    stall_seconds: float


class ManyStream(Response):
    """Streams several runs over one connection.

    Each frame is that of the run's own stream, after a line ``id: <run_id>:<seq>``. The end of a
    run is an event ``done``; a run that cannot be followed, or no longer, is an event
    ``run_error``, and the others go on. The body ends when all have ended. It is cut off if its
    reader reads nothing for ``stall_seconds``, or if its key becomes invalid.

    Each run counts as a stream of the tenant.
    """

    media_type = "text/event-stream"

    def __init__(self, job: ManyJob) -> None:
        super().__init__()
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access: Access | None = scope.get(ACCESS)
        connection: Connection | None = scope.get("extensions", {}).get(CONNECTION_EXTENSION)
        delivery = ManyDelivery(self._job, access, client_of(scope))
        try:
            delivery.count_streams()
        except ReattachError as error:
            self._job.runs.meters.refused.add("streams")
            await error_response(error)(scope, receive, send)
            return
        scope[FOLLOWED] = [one.run_id for one in self._job.cursors]
        start = {"type": "http.response.start", "status": 200, "headers": [*LETTA.headers]}
        try:
            if connection is None:
                await send(start)
            else:
                await connection.begin(send, start)
        except BaseException:
            delivery.release_streams()
            raise
        if connection is not None:
            delivery.start(LentBody(connection, self._job.stall_seconds))
            return
        await delivery.run(AsgiBody(send, receive, self._job.stall_seconds))


class _Member:
    """One run of the response."""

    __slots__ = ("cursor", "error", "following", "held", "ids", "is_settled", "is_waiting",
                 "sent_bytes", "target", "task")  # fmt: skip

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.ids = EventIds(cursor.run_id)
        self.target: Target | None = None
        self.following: Following | None = None
        self.error: ReattachError | None = None
        """The reason why the run cannot be followed any longer."""
        self.held: Slice | None = None
        """Events that were read and wait for the record of the run's end."""
        self.is_settled = False
        """The record says how the run ended, so its last events may be shown."""
        self.is_waiting = False
        """That is being waited for, so there is nothing else to do."""
        self.sent_bytes = 0
        """Its position in the order of service: the bytes that it got, or would have got if it had
        had some while others were served."""
        self.task: asyncio.Task[None] | None = None
        """Opens the run, or waits for the record of its end."""


class ManyDelivery:
    """Delivers the runs of one response, the one that got the fewest bytes first.

    It holds a cursor for each run and at most one write. It is one task; between events it costs
    the stores nothing.
    """

    def __init__(self, job: ManyJob, access: Access | None, client: str = "") -> None:
        self._job = job
        self._access = access
        self._client = client
        self._members = [_Member(cursor) for cursor in job.cursors]
        self._ready: dict[_Member, None] = {}
        """The members that may have something to send."""
        self._open_count = len(self._members)
        self._streams = 0
        self._served_bytes = 0
        """The position in the order of service of the member that was served last."""
        self._woken = asyncio.Event()
        self._lookups = asyncio.Semaphore(_LOOKUPS_AT_ONCE)
        self._revoked = False
        self._quiet_since = 0.0
        self._keepalive_due = False
        self._pending: list[bytes] = []
        """Frames that go into the next write."""
        self._pending_bytes = 0
        self._task: asyncio.Task[None] | None = None

    def count_streams(self) -> None:
        """Count a stream of the tenant for each run.

        Raises:
            QuotaError: That would be too many. None is counted then.
        """
        if self._access is None:
            return
        try:
            for _ in self._members:
                self._access.use.open_stream()
                self._streams += 1
        except ReattachError:
            self.release_streams()
            raise

    def release_streams(self) -> None:
        """Count the streams of runs that have not ended no longer."""
        while self._streams:
            self._close_stream()

    def _close_stream(self) -> None:
        if self._access is not None and self._streams:
            self._streams -= 1
            self._access.use.close_stream()

    def start(self, body: Body) -> None:
        """Deliver in a task of its own, after the application has returned."""
        self._task = asyncio.get_running_loop().create_task(self.run(body), name="many runs")

    async def run(self, body: Body) -> None:
        """Deliver until all runs have ended, or the reader is gone or cut off."""
        loop = asyncio.get_running_loop()
        self._quiet_since = loop.time()
        body.on_disconnect(self._woken.set)
        if self._access is not None:
            self._access.add(self._revoke)
        for member in self._members:
            member.task = loop.create_task(self._open(member))
        is_whole = False
        try:
            is_whole = await self._deliver(body)
        except Exception:
            run_ids = ",".join(member.cursor.run_id for member in self._members)
            logger.exception("delivery failed", run_id=run_ids)
            self._cut_off(CutReason.ERROR, "the server failed")
        finally:
            await self._release()
            if is_whole:
                await body.finish()
            else:
                body.abort()

    def _revoke(self) -> None:
        self._revoked = True
        self._woken.set()

    async def _release(self) -> None:
        if self._access is not None:
            self._access.discard(self._revoke)
        self.release_streams()
        tasks = [one.task for one in self._members if one.task is not None]
        for task in tasks:
            task.cancel()
        for member in self._members:
            await self._close(member)
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in self._members:  # Some may have opened their run while they were cancelled.
            await self._close(member)

    async def _close(self, member: _Member) -> None:
        following, member.following = member.following, None
        if following is not None:
            self._job.runs.readers.remove(following)
            await following.aclose()

    def _cut_off_without_rights(self) -> bool:
        access = self._access
        token_ends_at = None
        if access is not None and access.claims is not None:
            token_ends_at = access.expires_at
        return self._cut_off(*loss_of_rights(token_ends_at, self._job.clock.now()))

    def _cut_off(self, reason: CutReason, detail: str) -> bool:
        """Note for each run why the body ends early, and return False."""
        for member in self._members:
            if member.following is not None:
                self._job.runs.readers.note_cut(member.following, reason, detail)
        return False

    # Each run by itself.

    async def _open(self, member: _Member) -> None:
        """Find the run and begin to follow it."""
        job, cursor = self._job, member.cursor
        try:
            async with self._lookups:
                member.target = await job.runs.target(job.tenant, cursor.run_id)
            require_background(member.target)
            following = await job.runs.follow(
                member.target, cursor.starting_after, prefetches=False
            )
        except ReattachError as error:
            count_failed_resume(job.runs.meters, error)
            member.error = error
        except Exception as error:
            logger.exception("run cannot be followed", run_id=cursor.run_id)
            member.error = ReattachError(str(error))
        else:
            count_resume(job.runs.meters, following, cursor.starting_after)
            member.following = following
            member.is_settled = not member.target.status.is_active
            following.wake = partial(self._on_wake, member)
            job.runs.readers.add(
                following,
                member.target,
                transport=Transport.MANY,
                client=self._client,
                pings=True,
            )
        self._mark_ready(member)

    async def _settle(self, member: _Member) -> None:
        """Wait until the record says how the run ended, because its last events are shown then."""
        assert member.target is not None
        if await self._job.runs.is_settled_in_time(member.target):
            member.is_settled = True
        else:
            member.error = _unavailable(member, "the end of the run is not recorded yet")
        member.is_waiting = False
        self._mark_ready(member)

    def _on_wake(self, member: _Member) -> None:
        following = member.following
        if following is None:
            return
        if following.keepalive_due:
            following.keepalive_due = False
            # Each run is watched, but silent is only a connection on which all are.
            if following.quiet_since is None or following.quiet_since >= self._quiet_since:
                self._keepalive_due = True
                self._woken.set()
            following.quiet_since = self._quiet_since
        if not member.is_waiting and (following.has_more or following.released):
            self._mark_ready(member)

    def _mark_ready(self, member: _Member) -> None:
        if member not in self._ready:
            self._ready[member] = None
            member.sent_bytes = max(member.sent_bytes, self._served_bytes)
            self._woken.set()

    # Everything in one body.

    async def _deliver(self, body: Body) -> bool:
        """Return whether every run has ended and everything was written."""
        await body.begin()
        while self._open_count:
            self._woken.clear()
            while self._ready and self._pending_bytes < REPLAY_SLICE_BYTES:
                await self._serve(min(self._ready, key=lambda one: one.sent_bytes))
            if body.gone:
                return False
            if self._revoked:
                return self._cut_off_without_rights()
            if self._keepalive_due and not self._pending:
                self._put(self._keepalive())
            if self._pending:
                if not await self._flush(body):
                    return False
            elif not self._ready:
                await self._woken.wait()
        return True

    async def _flush(self, body: Body) -> bool:
        """Write what is pending, and return whether the reader is still there."""
        pieces, self._pending, self._pending_bytes = self._pending, [], 0
        try:
            await body.write(b"".join(pieces))
        except TimeoutError:
            seconds = self._job.stall_seconds
            return self._cut_off(CutReason.STALLED, f"it read nothing for {seconds:g} seconds")
        for member in self._members:
            if member.following is not None and member.following.lag is not None:
                member.following.note_sent()
        self._quiet_since, self._keepalive_due = asyncio.get_running_loop().time(), False
        await asyncio.sleep(0)  # A reader that keeps up must not keep the event loop.
        return not body.gone

    async def _serve(self, member: _Member) -> None:
        """Put the next events of the run, or its end."""
        self._served_bytes = max(self._served_bytes, member.sent_bytes)
        try:
            if member.error is not None:
                raise member.error
            piece = await self._next(member)
        except ReattachError as error:
            await self._end(member, self._run_error(member, error))
            return
        following = member.following
        assert following is not None
        if piece is None:
            del self._ready[member]
            member.is_waiting = True
            member.task = asyncio.get_running_loop().create_task(self._settle(member))
        elif piece.frames:
            self._put(member.ids.spliced(piece.frames, piece.first_seq), member)
            if not following.has_more:
                del self._ready[member]
        elif (failure := following.failure) is not None:
            is_passing = isinstance(failure, StoreUnavailableError)
            reason = failure if is_passing else gone_error(member.cursor.run_id)
            await self._end(member, self._run_error(member, reason))
        elif following.released:
            released = _unavailable(member, "this server is shutting down")
            await self._end(member, self._run_error(member, released))
        elif following.closed:
            await self._end(member, member.ids.done(following.cursor))
        else:
            del self._ready[member]

    async def _next(self, member: _Member) -> Slice | None:
        """Return the next events, or None if the run has ended and its record does not say so yet.

        Raises:
            EventsLostError: The events are damaged.
            StoreUnavailableError: The store does not answer, or the log was lost or deleted.
        """
        following, piece, member.held = member.following, member.held, None
        assert following is not None
        if piece is None and (member.is_settled or not following.closed):
            try:
                piece = await following.read()
            except LogDamagedError as error:
                raise EventsLostError(member.cursor.run_id) from error
            except TrimmedError as error:  # A new reader learns why.
                raise gone_error(member.cursor.run_id) from error
        if following.closed and not member.is_settled:
            member.held = piece
            return None
        return piece

    async def _end(self, member: _Member, frame: bytes) -> None:
        self._put(frame, member)
        del self._ready[member]
        self._open_count -= 1
        self._close_stream()
        await self._close(member)

    def _put(self, frames: bytes, member: _Member | None = None) -> None:
        self._pending.append(frames)
        self._pending_bytes += len(frames)
        if member is not None:
            member.sent_bytes += len(frames)

    def _run_error(self, member: _Member, error: ReattachError) -> bytes:
        members = {"run_id": member.cursor.run_id, **error_members(error)}
        return error_frame(msgspec.json.encode(members))

    def _keepalive(self) -> bytes:
        if not self._job.named_pings:
            return KEEPALIVE
        ping = head("ping", f"ping-{new_uuid()}", self._job.clock.now(), seq=None, run_id=None)
        return ping_frame(data_frame(msgspec.json.encode(ping)))


def _unavailable(member: _Member, reason: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"The events of {member.cursor.run_id} cannot be followed at present: {reason}.",
        remedy="Resume after the last event.",
    )
