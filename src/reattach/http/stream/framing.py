"""The bytes of a stream around the events of a run, which differ between its forms."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from typing_extensions import override

from reattach.domain.ids import Seq, new_uuid
from reattach.log.base import Slice
from reattach.runs.following.follow import Following
from reattach.runs.snapshot.sharing import SnapshotReader
from reattach.wire import event_source, letta
from reattach.wire.event_source import EventIds, ExpiryName
from reattach.wire.sse import DONE

EVENT_STREAM: Final = (b"content-type", b"text/event-stream; charset=utf-8")
NOT_BUFFERED: Final = (b"x-accel-buffering", b"no")


class Framing:
    """The form of the Letta API: the frames of the log as they are."""

    headers: tuple[tuple[bytes, bytes], ...] = (
        EVENT_STREAM,
        (b"cache-control", b"no-cache, no-transform"),
        NOT_BUFFERED,
    )
    """The first headers of a response."""

    farewell: bytes | None = None
    """The last bytes of a body whose run goes on elsewhere; None: such a body is cut off."""

    ends_properly: bool = False
    """Whether a body that is cut off ends like a complete one, because its reader knows from the
    events where it is. One that reads nothing is dropped all the same."""

    expiry_frame: Callable[[ExpiryName, datetime], bytes] | None = None
    """Makes the frames that announce the end of a reader's token; None: the reader is cut off."""

    splice: Callable[[Slice], bytes] | None = None
    """Encodes frames of the log for a reader; None: they are sent as they are."""

    from_snapshot: bool = False
    """Whether the body begins with the snapshot of the run."""

    async def open(
        self,
        snapshot: Callable[[], Awaitable[SnapshotReader]],  # noqa: ARG002
    ) -> Seq | None:
        """Begin the body; return the seq of its snapshot, or None if it begins with none.

        The result of ``snapshot`` belongs to this object from then on.
        """
        return None

    def attach(self, following: Following) -> None:
        """Note the reader that the body is for, before the rest of the opening is taken."""

    def take_opening(self) -> bytes:
        """Return the next of the first bytes of the body, at most one write; b"" after all."""
        return b""

    @property
    def is_within_frame(self) -> bool:
        """Whether a frame of the opening has begun and has not ended, so nothing else may come."""
        return False

    def close(self) -> None:
        """Let go of an opening that was not taken."""

    def keepalive(self, at: datetime, last_seq: Seq, run_id: str) -> bytes:
        """Return a keepalive for a reader that has the events up to ``last_seq``."""
        return letta.keepalive(f"ping-{new_uuid()}", at, last_seq, run_id)

    def done(self, last_seq: Seq) -> bytes:  # noqa: ARG002
        """Return the frame after the end of the run, whose last event is ``last_seq``."""
        return DONE


LETTA: Final = Framing()


class EventSourceFraming(Framing):
    """The form for ``EventSource``.

    ``pings`` sends keepalives as events, not as comments.
    """

    headers = (EVENT_STREAM, (b"cache-control", b"no-store, no-transform"), NOT_BUFFERED)
    farewell = event_source.FAREWELL
    expiry_frame = staticmethod(event_source.expiry_frame)

    def __init__(self, ids: EventIds, *, pings: bool, from_snapshot: bool = False) -> None:
        self.from_snapshot = from_snapshot
        self._opening = event_source.RETRY_LINE
        self._snapshot: SnapshotReader | None = None
        self._ids = ids
        self._pings = pings
        self.splice = self._splice

    @override
    async def open(self, snapshot: Callable[[], Awaitable[SnapshotReader]]) -> Seq | None:
        if not self.from_snapshot:
            return None
        self._snapshot = await snapshot()
        self._opening += self._ids.snapshot_start(self._snapshot.seq)
        return self._snapshot.seq

    @property
    @override
    def is_within_frame(self) -> bool:
        return self._snapshot is not None and not self._opening

    @override
    def take_opening(self) -> bytes:
        opening, self._opening = self._opening, b""
        if not opening and self._snapshot is not None:
            opening = self._snapshot.take()
            if not opening:
                self._snapshot = None
                return event_source.FRAME_END
        return opening

    @override
    def close(self) -> None:
        self._opening = b""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            snapshot.close()

    def _splice(self, piece: Slice) -> bytes:
        return self._ids.spliced(piece.frames, piece.first_seq)

    @override
    def keepalive(self, at: datetime, last_seq: Seq, run_id: str) -> bytes:
        if not self._pings:
            return event_source.KEEPALIVE
        return event_source.ping_frame(super().keepalive(at, last_seq, run_id))

    @override
    def done(self, last_seq: Seq) -> bytes:
        return self._ids.done(last_seq)
