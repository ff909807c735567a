"""The in-process end of one run's log, shared by everybody who follows it here."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from msgspec import Struct

from reattach.domain.errors import ReattachError
from reattach.domain.limits import LARGE_WRITE_BYTES, REPLAY_SLICE_BYTES, REPLAY_SLICE_EVENTS
from reattach.log.notifier import Listener, Notifier


class Slice(Struct, frozen=True, gc=False):
    """Consecutive frames ``first_seq`` … ``last_seq``, joined; empty: ``last_seq < first_seq``."""

    first_seq: int
    last_seq: int
    frames: bytes


class View(Struct, frozen=True, gc=False):
    """Frames up to ``last_seq`` as a ``Slice`` has them, in memory that they share with others."""

    last_seq: int
    frames: memoryview


class Tail:
    """Ready frames ``first_seq`` … ``last_seq`` of a run in one buffer, growing until closed.

    A reader is a cursor into it and holds no payload. Frames are 64-bit offsets into one
    ``bytearray``, so that a replay is a copy of a range and never a walk over events. Not safe
    across threads: everything happens on the event loop.

    A tail ends in one of two ways: closed (the log has its end), or failed (the log can not be
    followed any longer from here; readers may come back later with their cursor).

    Listeners are told at once, or when ``notifier`` sees fit.
    """

    __slots__ = (
        "_base",
        "_buffer",
        "_ends",
        "_latest",
        "_listeners",
        "_notifier",
        "closed",
        "failure",
        "first_seq",
    )  # fmt: skip

    def __init__(self, first_seq: int = 1, notifier: Notifier | None = None) -> None:
        self.first_seq = first_seq
        self.closed = False
        self.failure: ReattachError | None = None
        self._buffer = bytearray()
        self._ends = array("Q")
        self._base = 0
        self._notifier = notifier
        self._latest: Slice | None = None
        """What ``latest`` gives to most, until there are more frames."""
        self._listeners: dict[Listener, None] = {}

    def replacement(self, first_seq: int) -> "Tail":
        """An empty tail from ``first_seq`` on, whose listeners are told as those of this one."""
        return Tail(first_seq, self._notifier)

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self._ends) - 1

    @property
    def size_bytes(self) -> int:
        return len(self._buffer)

    @property
    def ended(self) -> bool:
        """Nothing will be added any more."""
        return self.closed or self.failure is not None

    def slice(self, after: int, *, max_bytes: int, max_events: int) -> Slice:
        """Frames from seq ``after + 1`` on, bounded as ``Log.read`` says.

        ``after + 1`` must not lie before ``first_seq``.
        """
        start = max(after + 1 - self.first_seq, 0)
        if start >= len(self._ends):
            return Slice(after + 1, after, b"")
        stop, begin, end = self._bounds(start, max_bytes, max_events)
        first = self.first_seq + start
        return Slice(first, self.first_seq + stop - 1, self._copy(begin, end))

    def view(self, after: int, *, max_bytes: int, max_events: int) -> View | None:
        """What ``slice`` gives, without a copy; only of a closed tail, and only what is large."""
        start = after + 1 - self.first_seq
        if not self.closed or not 0 <= start < len(self._ends):
            return None
        stop, begin, end = self._bounds(start, max_bytes, max_events)
        if end - begin < LARGE_WRITE_BYTES:
            return None
        return View(self.first_seq + stop - 1, memoryview(self._buffer)[begin:end].toreadonly())

    def _bounds(self, start: int, max_bytes: int, max_events: int) -> tuple[int, int, int]:
        """Of a slice from the frame at ``start`` on: its end, and both as places of the buffer."""
        begin = self._ends[start - 1] - self._base if start else 0
        stop = min(len(self._ends), start + max(max_events, 1))
        if self._ends[stop - 1] - self._base - begin > max_bytes:
            stop = start + self._fitting(begin, start, stop, max_bytes)
        return stop, begin, self._ends[stop - 1] - self._base

    def latest(self, after: int) -> Slice | None:
        """All frames from seq ``after + 1`` on, as one object for all readers that are there.

        None if there are none, if they are more than one write of a replay, if some of them are
        not here any more, and once the tail has ended.
        """
        latest = self._latest
        if latest is not None and latest.first_seq == after + 1:
            return latest
        if self.ended or after + 1 < self.first_seq:
            return None
        piece = self.slice(after, max_bytes=REPLAY_SLICE_BYTES, max_events=REPLAY_SLICE_EVENTS)
        if not piece.frames or piece.last_seq < self.last_seq:
            return None
        self._latest = piece
        return piece

    def _fitting(self, begin: int, start: int, stop: int, max_bytes: int) -> int:
        """How many frames from ``start`` fit into ``max_bytes``; at least one."""
        end = self._base + begin + max_bytes
        return max(bisect_right(self._ends, end, start, stop) - start, 1)

    def ends(self, first_seq: int, last_seq: int) -> "array[int]":
        """Where each of these frames ends, in bytes from the beginning of the first of them.

        All of them must be here.
        """
        start, stop = first_seq - self.first_seq, last_seq + 1 - self.first_seq
        begin = self._ends[start - 1] if start else self._base
        return array("Q", (end - begin for end in self._ends[start:stop]))

    def holds(self, first_seq: int, frames: Sequence[bytes]) -> bool:
        """Whether just these frames are at ``first_seq`` and following, each with its bounds."""
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
        """Add frames that the log holds, and close the tail if the log is closed; tell readers."""
        self._latest = None
        buffer, ends = self._buffer, self._ends
        for frame in frames:
            buffer += frame
            ends.append(self._base + len(buffer))
        if close:
            self.closed = True
        elif len(frames) == 1 and self._listeners and len(frames[0]) <= REPLAY_SLICE_BYTES:
            last_seq = self.first_seq + len(ends) - 1
            self._latest = Slice(last_seq, last_seq, frames[0])
        self._changed()

    def extend_joined(self, frames: bytes, ends: Iterable[int]) -> None:
        """Add frames as one piece of which ``ends`` are the frames' ends; wakes nobody.

        For filling a tail from a store before anybody follows it.
        """
        self._latest = None
        end = self._base + len(self._buffer)
        self._ends.extend(end + offset for offset in ends)
        self._buffer += frames

    def fail(self, failure: ReattachError) -> None:
        """End the tail without closing it. No-op once ended."""
        if not self.ended:
            self.failure = failure
            self._latest = None
            self._changed()

    def trim(self, first_seq: int) -> None:
        """Forget the frames before ``first_seq``, at most all that it has."""
        drop = min(first_seq - self.first_seq, len(self._ends))
        if drop <= 0:
            return
        cut = self._ends[drop - 1] - self._base
        self._buffer = self._buffer[cut:]  # Not in place: views may be on their way.
        del self._ends[:drop]
        self._base += cut
        self.first_seq += drop
        self._latest = None

    def subscribe(self, listener: Listener) -> None:
        """Call ``listener`` after every change, or once after several."""
        self._listeners[listener] = None

    def unsubscribe(self, listener: Listener) -> None:
        """Call it no more."""
        self._listeners.pop(listener, None)
        if self._notifier is not None:
            self._notifier.forget(listener)

    def _changed(self) -> None:
        if self._notifier is not None:
            self._notifier.note(self._listeners)
            return
        for listener in tuple(self._listeners):
            listener()
