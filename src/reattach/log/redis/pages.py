"""Frames that were read together, from the entries of a stream."""

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from reattach.domain.ids import Seq
from reattach.domain.limits import LARGE_WRITE_BYTES
from reattach.log.frames import unpack_numbers
from reattach.log.tail import Pieces, Slice, stop_of

COUNT: Final = struct.Struct("<I")
"""The number of frames in the body of an entry, with which it begins."""
_ONE: Final = COUNT.pack(1)


class Page:
    """Consecutive frames from ``first_seq`` on, in the pieces in which they came.

    Most slices are whole pieces. To join a page, and to work out where each frame ends, takes as
    long as to receive it, so that is done only if a piece has to be cut.
    """

    __slots__ = ("_counts", "_ends", "_joined", "_lengths", "_offsets", "_pieces", "first_seq")

    def __init__(self, first_seq: Seq) -> None:
        self.first_seq = first_seq
        self._pieces: list[bytes | memoryview] = []
        self._lengths = array("I")
        self._counts, self._offsets = [0], [0]
        """The frames and bytes before each piece, and those of all."""
        self._joined: bytes | None = None
        self._ends: array[int] | None = None

    def add_one(self, frame: bytes) -> None:
        self._lengths.append(len(frame))
        self._note_piece(frame)

    def add(self, frames: memoryview, lengths: "array[int]") -> None:
        self._lengths.extend(lengths)
        self._note_piece(frames)

    def _note_piece(self, piece: bytes | memoryview) -> None:
        self._pieces.append(piece)
        self._counts.append(len(self._lengths))
        self._offsets.append(self._offsets[-1] + len(piece))

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def last_seq(self) -> Seq:
        return Seq(self.first_seq + len(self._lengths) - 1)

    @property
    def frames(self) -> bytes:
        """All frames, joined."""
        if self._joined is None:
            self._joined = b"".join(self._pieces)
        return self._joined

    @property
    def ends(self) -> "array[int]":
        """The end of each frame in ``frames``."""
        if self._ends is None:
            self._ends = array("Q", accumulate(self._lengths))
        return self._ends

    def slice(self, after_seq: Seq, *, max_bytes: int, max_events: int) -> Slice | None:
        """Return frames from ``after_seq + 1`` on, within the bounds of ``Log.read``.

        None if the page does not have that frame.
        """
        found = self.pieces(after_seq, max_bytes=max_bytes, max_events=max_events)
        if found is None:
            return None
        return Slice(after_seq + 1, found.last_seq, b"".join(found.frames))

    def pieces(self, after_seq: Seq, *, max_bytes: int, max_events: int) -> Pieces | None:
        """Return the frames of ``slice``, without copying them if they are large pieces."""
        start = after_seq + 1 - self.first_seq
        if not 0 <= start < len(self):
            return None
        whole = self._whole_pieces(start, max_bytes, max_events)
        if whole is None:
            begin = self.ends[start - 1] if start else 0
            stop = stop_of(self.ends, start, begin, max_bytes=max_bytes, max_events=max_events)
            cut = self.frames[begin : self.ends[stop - 1]]
            return Pieces(Seq(self.first_seq + stop - 1), (cut,))
        first, stop = whole
        pieces: Sequence[bytes | memoryview] = self._pieces[first:stop]
        if self._offsets[stop] - self._offsets[first] < LARGE_WRITE_BYTES * len(pieces):
            pieces = [b"".join(pieces)]
        return Pieces(Seq(self.first_seq + self._counts[stop] - 1), tuple(pieces))

    def _whole_pieces(self, start: int, max_bytes: int, max_events: int) -> tuple[int, int] | None:
        """Return the range of whole pieces from the frame ``start`` on, within the bounds.

        None if a piece has to be cut.
        """
        counts, offsets = self._counts, self._offsets
        first = bisect_left(counts, start)
        if counts[first] != start:
            return None
        most_bytes, most_frames = offsets[first] + max_bytes, start + max_events
        stop = min(bisect_right(offsets, most_bytes), bisect_right(counts, most_frames)) - 1
        return (first, stop) if stop > first else None


def page_of(first_seq: Seq, bodies: Sequence[bytes], *, after_seq: Seq) -> Page:
    """Return the frames after ``after_seq`` from bodies of entries.

    The first body begins with ``first_seq``.

    Raises:
        ValueError: The first one of these frames is damaged.
        struct.error: The same.
    """
    page = Page(Seq(max(after_seq + 1, first_seq)))
    before: int = page.first_seq - first_seq
    for body in bodies:
        if not before and body.startswith(_ONE):  # The most frequent case by far.
            page.add_one(body[COUNT.size :])
            continue
        try:
            frames, lengths = _parsed(body)
        except (struct.error, ValueError):
            if page:
                break  # The frames before the damaged ones are whole.
            raise
        if before:
            skipped, before = lengths[:before], max(before - len(lengths), 0)
            frames, lengths = frames[sum(skipped) :], lengths[len(skipped) :]
        if lengths:
            page.add(frames, lengths)
    return page


def _parsed(body: bytes) -> "tuple[memoryview, array[int]]":
    """Return the frames of a body, and their lengths."""
    if body.startswith(_ONE):
        return memoryview(body)[COUNT.size :], array("I", [len(body) - COUNT.size])
    (count,) = COUNT.unpack_from(body)
    at = COUNT.size * (1 + count)
    lengths = unpack_numbers(body[COUNT.size : at])
    if len(lengths) != count or sum(lengths) != len(body) - at:
        raise ValueError("The lengths are not those of the frames.")
    return memoryview(body)[at:], lengths
