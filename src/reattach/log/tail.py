"""The shared in-memory end of one run's log."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec import Struct

from reattach.domain.errors import ReattachError
from reattach.domain.ids import FIRST_SEQ, Seq
from reattach.domain.limits import LARGE_WRITE_BYTES, REPLAY_SLICE_BYTES, REPLAY_SLICE_EVENTS
from reattach.log.notifier import Listener, Notifier


@dataclass(frozen=True, slots=True)
class Head:
    """The extent of a log. An empty log has ``last_seq == first_seq - 1``."""

    first_seq: Seq
    """The earliest event kept; 1 unless the log was trimmed or began later."""
    last_seq: Seq
    closed: bool
    tail_uncertain: bool = False
    """The machine lost power after the last append, so events after ``last_seq`` may be lost.

    True only for an open log that has not been opened since.
    """


class Slice(Struct, frozen=True, gc=False):
    """Consecutive frames ``first_seq`` … ``last_seq``, joined; empty: ``last_seq < first_seq``."""

    first_seq: Seq
    last_seq: Seq
    frames: bytes


class View(Struct, frozen=True, gc=False):
    """The frames of a ``Slice`` up to ``last_seq``, in memory shared with the tail."""

    last_seq: Seq
    frames: memoryview


class Pieces(Struct, frozen=True, gc=False):
    """The frames of a ``Slice`` up to ``last_seq``, in pieces that others may share."""

    last_seq: Seq
    frames: tuple[bytes | memoryview, ...]


def stop_of(ends: "array[int]", start: int, begin: int, *, max_bytes: int, max_events: int) -> int:
    """Return the index after the last frame of a slice that starts with frame ``start``.

    That frame begins at ``begin``, and ``ends`` are those of all frames. It is in the slice
    whatever its size.
    """
    stop = min(len(ends), start + max(max_events, 1))
    if ends[stop - 1] - begin > max_bytes:
        stop = max(bisect_right(ends, begin + max_bytes, start, stop), start + 1)
    return stop


class Tail:
    """The frames ``first_seq`` … ``last_seq`` of a run in one buffer, growing until the end.

    A reader is a cursor into the tail and holds no payload. The frames lie in one ``bytearray``
    and their ends are numbers, so a replay copies a range without a loop over events. Not
    thread-safe: use it in the event loop only.

    A tail ends in one of two ways. It is closed when the log is closed. It fails when the log
    cannot be followed here any longer; readers may come back later with their cursor.

    Listeners are called immediately, or by ``notifier`` if there is one.
    """

    __slots__ = ("_base", "_buffer", "_ends", "_latest", "_listeners", "closed",
                 "failure", "first_seq", "last_seq", "notifier")  # fmt: skip

    def __init__(self, first_seq: Seq = FIRST_SEQ, notifier: Notifier | None = None) -> None:
        self.first_seq = first_seq
        self.last_seq = first_seq - 1
        self.closed = False
        self.failure: ReattachError | None = None
        self._buffer = bytearray()
        self._ends = array("Q")
        self._base = 0
        """The bytes trimmed so far. ``_ends`` count from before the trim."""
        self.notifier = notifier
        self._latest: Slice | None = None
        """The cached answer of ``latest``, valid until the tail changes."""
        self._listeners: dict[Listener, None] = {}

    def replacement(self, first_seq: Seq) -> "Tail":
        """Return an empty tail that begins at ``first_seq`` and has the same notifier."""
        return Tail(first_seq, self.notifier)

    @property
    def size_bytes(self) -> int:
        return len(self._buffer)

    @property
    def ended(self) -> bool:
        """Whether the tail is closed or failed, so that no frames follow."""
        return self.closed or self.failure is not None

    def slice(self, after_seq: Seq, *, max_bytes: int, max_events: int) -> Slice:
        """Return frames from ``after_seq + 1`` on, within the bounds of ``Log.read``.

        ``after_seq + 1`` must not lie before ``first_seq``.
        """
        start = max(after_seq + 1 - self.first_seq, 0)
        if start >= len(self._ends):
            return Slice(after_seq + 1, after_seq, b"")
        stop, begin, end = self._bounds(start, max_bytes, max_events)
        first = self.first_seq + start
        return Slice(first, self.first_seq + stop - 1, self._copy(begin, end))

    def view(self, after_seq: Seq, *, max_bytes: int, max_events: int) -> View | None:
        """Return the frames of ``slice`` without copying them.

        None unless the tail is closed and the frames are large enough for this to pay off.
        """
        start = after_seq + 1 - self.first_seq
        if not self.closed or not 0 <= start < len(self._ends):
            return None
        stop, begin, end = self._bounds(start, max_bytes, max_events)
        if end - begin < LARGE_WRITE_BYTES:
            return None
        return View(self.first_seq + stop - 1, memoryview(self._buffer)[begin:end].toreadonly())

    def extended(self, piece: Slice, *, max_bytes: int, max_events: int) -> Slice:
        """Return ``piece`` with the frames that follow it here, within the bounds of both."""
        room_bytes = max_bytes - len(piece.frames)
        room_events = max_events - (piece.last_seq + 1 - piece.first_seq)
        if room_bytes <= 0 or room_events <= 0 or piece.last_seq + 1 < self.first_seq:
            return piece
        rest = self.slice(piece.last_seq, max_bytes=room_bytes, max_events=room_events)
        if len(rest.frames) > room_bytes:  # A single frame is returned whatever its size.
            return piece
        return Slice(piece.first_seq, rest.last_seq, piece.frames + rest.frames)

    def _bounds(self, start: int, max_bytes: int, max_events: int) -> tuple[int, int, int]:
        """Return the end index of a slice that starts at frame ``start``, and its byte range."""
        begin = self._ends[start - 1] if start else self._base
        stop = stop_of(self._ends, start, begin, max_bytes=max_bytes, max_events=max_events)
        return stop, begin - self._base, self._ends[stop - 1] - self._base

    def latest(self, after_seq: Seq) -> Slice | None:
        """Return all frames from ``after_seq + 1`` on, as one object shared by all readers there.

        None if there are no such frames, if they exceed one write of a replay, if the first of
        them is not in the tail, or once the tail has ended.
        """
        latest = self._latest
        if latest is not None and latest.first_seq == after_seq + 1:
            return latest
        if self.ended or after_seq + 1 < self.first_seq:
            return None
        piece = self.slice(after_seq, max_bytes=REPLAY_SLICE_BYTES, max_events=REPLAY_SLICE_EVENTS)
        if not piece.frames or piece.last_seq < self.last_seq:
            return None
        self._latest = piece
        return piece

    def ends(self, first_seq: Seq, last_seq: Seq) -> "array[int]":
        """Return the end of each of these frames as an offset from the start of the first one.

        The tail must contain all of them.
        """
        start, stop = first_seq - self.first_seq, last_seq + 1 - self.first_seq
        begin = self._ends[start - 1] if start else self._base
        return array("Q", (end - begin for end in self._ends[start:stop]))

    def holds(self, first_seq: Seq, frames: Sequence[bytes]) -> bool:
        """Return whether the frames from ``first_seq`` on equal ``frames``, one by one."""
        if first_seq < self.first_seq or first_seq + len(frames) - 1 > self.last_seq:
            return False
        start = first_seq - self.first_seq
        begin = self._ends[start - 1] - self._base if start else 0
        for index, frame in enumerate(frames, start):
            end = self._ends[index] - self._base
            if self._buffer[begin:end] != frame:
                return False
            begin = end
        return True

    def _copy(self, begin: int, end: int) -> bytes:
        with memoryview(self._buffer) as view:  # Slicing the buffer itself would copy twice.
            return bytes(view[begin:end])

    def extend(self, frames: Sequence[bytes], *, close: bool = False) -> None:
        """Add frames that the log has stored, close the tail with ``close``, notify listeners."""
        self._latest = None
        buffer, ends = self._buffer, self._ends
        for frame in frames:
            buffer += frame
            ends.append(self._base + len(buffer))
        last_seq = self.last_seq = self.last_seq + len(frames)
        if close:
            self.closed = True
        elif len(frames) == 1 and self._listeners and len(frames[0]) <= REPLAY_SLICE_BYTES:
            self._latest = Slice(last_seq, last_seq, frames[0])
        self._notify_listeners()

    def extend_joined(self, frames: bytes, ends: Iterable[int]) -> None:
        """Add joined frames that end at ``ends``, without notifying listeners.

        Fills a tail from a store before anybody follows it.
        """
        self._latest = None
        end, count = self._base + len(self._buffer), len(self._ends)
        self._ends.fromlist([end + offset for offset in ends])
        self.last_seq += len(self._ends) - count
        self._buffer += frames

    def prepend(self, earlier: "Tail") -> None:
        """Add the frames of ``earlier`` before those here, without notifying listeners.

        They must end where this tail begins. ``earlier`` cannot be used any more.
        """
        buffer, ends = earlier._buffer, earlier._ends
        moved = earlier._base + len(buffer) - self._base
        ends.fromlist([end + moved for end in self._ends])
        buffer += self._buffer
        self._buffer, self._ends, self._base = buffer, ends, earlier._base
        self.first_seq = earlier.first_seq
        self._latest = None

    def fail(self, failure: ReattachError) -> None:
        """End the tail without closing it. No-op if it has ended."""
        if not self.ended:
            self.failure = failure
            self._latest = None
            self._notify_listeners()

    def trim(self, first_seq: Seq) -> None:
        """Drop the frames before ``first_seq``, at most all of them."""
        drop = min(first_seq - self.first_seq, len(self._ends))
        if drop <= 0:
            return
        cut = self._ends[drop - 1] - self._base
        self._buffer = self._buffer[cut:]  # Not in place: a view may still point into the old one.
        del self._ends[:drop]
        self._base += cut
        self.first_seq += drop
        self._latest = None

    def subscribe(self, listener: Listener) -> None:
        """Call ``listener`` after every change, or once after several."""
        self._listeners[listener] = None

    def unsubscribe(self, listener: Listener) -> None:
        """Stop calling ``listener``, including a notification that is queued."""
        self._listeners.pop(listener, None)
        if self.notifier is not None:
            self.notifier.discard(listener)

    def _notify_listeners(self) -> None:
        if self.notifier is not None:
            self.notifier.enqueue(self._listeners)
            return
        for listener in tuple(self._listeners):
            listener()
