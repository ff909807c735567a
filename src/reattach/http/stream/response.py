"""The streaming response: a run's frames after a cursor, live until its end.

It is a plain ASGI response that works under any server. If ``http.connection`` lends its connection
(see ``CONNECTION_EXTENSION``), a reader that must be cut off is cut off at once, slow readers are
distinguished from stalled ones, and an idle reader costs no task.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from fastapi import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from reattach.domain.clock import Clock
from reattach.domain.errors import InvalidArgumentError, QuotaError, ReattachError
from reattach.domain.events import RunStatus
from reattach.domain.limits import REPLAY_SLICE_EVENTS
from reattach.http.client_name import client_of
from reattach.http.errors import error_response
from reattach.http.middleware.access import ACCESS, Access
from reattach.http.middleware.followed import ASKED_CURSOR, FOLLOWED
from reattach.http.stream.body import CONNECTION_EXTENSION, AsgiBody, Connection
from reattach.http.stream.delivery import AsgiDelivery, DetachedDelivery, Source, StreamJob
from reattach.http.stream.framing import LETTA, Framing
from reattach.http.stream.resumes import count_failed_resume, count_position, count_resume
from reattach.runs.following.follow import Following, Target
from reattach.runs.following.readers import Transport
from reattach.runs.service import RunService
from reattach.runs.snapshot.sharing import SnapshotReader

_REPLACEABLE: Final = frozenset({b"cache-control", b"x-accel-buffering"})
"""Headers that the application may override."""

_RESERVED: Final = frozenset(
    {b"content-type", b"content-length", b"x-run-id", b"x-run-status", b"x-stream-starts-after"}
)


def require_background(target: Target) -> None:
    """Raises InvalidArgumentError for a foreground run, which cannot be resumed."""
    if not target.background:
        raise InvalidArgumentError(
            "Run was not created in background mode, so it cannot be retrieved."
        )


class RunStream(Response):
    """Streams the run after ``cursor``.

    The headers are sent at once. The terminal group is sent once the run's record says how it
    ended. The body ends with ``[DONE]`` exactly if everything up to the end of the closed log was
    sent. Otherwise (the reader reads nothing for ``stall_seconds``, or the log cannot be followed
    any longer) the connection is dropped without it, and the reader may resume. A reader that
    leaves does not affect the run. ``framing`` is the form of the stream. If it begins
    with the run's snapshot, the snapshot's seq takes the place of the cursor. ``source``
    has the frames if they are not those of the log. ``resumes`` counts
    the reader among those that resume. ``on_leave`` is called if the reader leaves before the end.

    An error of ``RunService.follow`` becomes an error response instead of a stream.
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
        framing: Framing = LETTA,
        resumes: bool = False,
        source: Source | None = None,
        on_leave: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__()
        self._resumes = resumes
        self._job = StreamJob(runs, target, clock, stall_seconds, framing, source, on_leave)
        self._cursor = cursor
        self._max_events = max_events
        self._include_pings = include_pings
        self._more_headers = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in (headers or {}).items()
        ]

    @override
    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        # The head is built when the stream starts; the application may add headers until then.
        self.raw_headers = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = await self.respond(scope, receive, send)
        if error is not None:
            self._count_error(error)
            response = error_response(error)
            response.raw_headers += self._added_headers()
            await response(scope, receive, send)
        if self.background is not None:
            await self.background()

    def _added_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers and cookies that the application set, except reserved ones."""
        return [(name, value) for name, value in self.raw_headers if name not in _RESERVED]

    async def respond(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *headers: tuple[bytes, bytes],
        waits: bool = True,
    ) -> ReattachError | None:
        """Stream, with ``headers`` after all others, or send nothing and return the error.

        ``waits`` allows waiting for a log that is about to be opened.
        """
        self._more_headers += headers
        job = self._job
        scope[FOLLOWED] = job.target
        if self._resumes and not job.framing.from_snapshot:
            scope[ASKED_CURSOR] = self._cursor
        connection: Connection | None = scope.get("extensions", {}).get(CONNECTION_EXTENSION)
        if connection is not None and connection.is_writable() and not job.framing.from_snapshot:
            rest = job.frames.remainder(job.target, self._cursor, max_events=self._max_events)
            if rest is not None:
                if self._resumes:
                    missed = rest.last_seq - rest.first_seq + 1
                    count_position(job.runs.meters, self._cursor, rest.last_seq, missed)
                framing = job.framing
                frames = rest.frames if framing.splice is None else framing.splice(rest)
                await connection.begin(send, self._start(rest.first_seq - 1))
                connection.finish(framing.take_opening() + frames, framing.done(rest.last_seq))
                return None
        access: Access | None = scope.get(ACCESS)
        try:
            if access is not None:
                access.use.open_stream()
            try:
                seq = await job.framing.open(partial(self._begin_snapshot, access))
                if seq is not None:
                    self._cursor = seq
                following = await job.frames.follow(
                    job.target, self._cursor, max_events=self._max_events, waits=waits
                )
            except BaseException:
                job.framing.close()
                if access is not None:
                    access.use.close_stream()
                raise
        except ReattachError as error:
            return error
        if self._resumes:
            kind = "" if seq is None else "snapshot"
            count_resume(job.runs.meters, following, self._cursor, kind)
        job.framing.attach(following)
        if access is not None:
            access.add(following.revoke)
        await self._deliver(following, connection, scope, receive, send)
        return None

    def _count_error(self, error: ReattachError) -> None:
        meters = self._job.runs.meters
        if isinstance(error, QuotaError):
            meters.refused.add("streams")
        elif self._resumes:
            count_failed_resume(meters, error)

    async def _begin_snapshot(self, access: Access | None) -> SnapshotReader:
        return await self._job.runs.snapshots.begin(
            self._job.target, system_messages=access is None or access.shows_system_messages
        )

    async def _deliver(
        self,
        following: Following,
        connection: Connection | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        job, readers = self._job, self._job.runs.readers
        access: Access | None = scope.get(ACCESS)

        async def release() -> None:
            readers.remove(following)
            job.framing.close()
            if access is not None:
                access.discard(following.revoke)
                access.use.close_stream()
            await following.aclose()

        try:
            start = self._start(following.cursor)
            await (send(start) if connection is None else connection.begin(send, start))
        except BaseException:
            await release()
            raise
        if access is not None and access.claims is not None:
            following.token_ends_at = access.expires_at
            if job.framing.expiry_frame:
                following.expires_at = access.expires_at
        readers.add(
            following,
            job.target,
            transport=Transport.GET if scope["method"] == "GET" else Transport.POST,
            client=client_of(scope),
            pings=self._include_pings,
            is_translated=job.source is not None,
        )
        if connection is not None:
            DetachedDelivery(self._job, following, connection, release).begin()
            return
        try:
            await AsgiDelivery(job, following, AsgiBody(send, receive, job.stall_seconds)).to_end()
        finally:
            await release()

    def _start(self, cursor: int) -> dict[str, object]:
        status = self._job.target.status
        if status is RunStatus.CREATED:  # Its log is open by now.
            status = RunStatus.RUNNING
        headers = [
            *self._job.framing.headers,
            (b"x-run-id", self._job.target.run_id.encode("latin-1")),
            (b"x-run-status", status.value.encode("latin-1")),
            (b"x-stream-starts-after", b"%d" % cursor),
            *self._more_headers,
            *(added := self._added_headers()),
        ]
        if replaced := {name for name, _ in added} & _REPLACEABLE:
            headers = [one for one in headers if one[0] not in replaced or one in added]
        return {"type": "http.response.start", "status": 200, "headers": headers}
