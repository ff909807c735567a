"""The log's frames for ``EventSource`` of web pages: each has its position as ``id:`` before it.

A page that loses its connection sends the id of its last complete frame as ``Last-Event-ID``. An id
is ``<seq>``, or ``<run_id>:<seq>`` where the address does not name the run, and ends with ``-done``
after the end of the run. The grammar is the event stream of the WHATWG HTML standard, section 9.2.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from reattach.domain.clock import utc_text
from reattach.domain.ids import UUID4, RunId, Seq
from reattach.wire.sse import DONE, split_frames

RETRY_MS: Final = 1000
"""The pause before a page reconnects: about a fifth of what browsers wait by themselves."""

RETRY_LINE: Final = b"retry: %d\n" % RETRY_MS
"""A line of the first frame of a stream."""

FRAME_END: Final = b"\n\n"

FAREWELL: Final = RETRY_LINE + b"\n"
"""Ends a body that is not at the end of the run, so that the page reconnects."""

KEEPALIVE: Final = b": keepalive\n"
"""A line of a comment. A blank line after it would be an empty frame for some clients."""

ExpiryName = Literal["expiring", "expired"]

_ID: Final = re.compile(rf"(?:(run-{UUID4}):)?([0-9]{{1,16}})(-done)?")


@dataclass(frozen=True, slots=True)
class EventId:
    """The position in an id, as a client sends it back."""

    run_id: RunId | None
    seq: Seq
    has_ended: bool
    """The client has seen the end of the run."""


def parse_event_id(text: str) -> EventId:
    """Return the position in an id. Raises ValueError if it is not an id of this module."""
    match = _ID.fullmatch(text)
    if match is None:
        raise ValueError("It is not an id of an event: <seq>, <run_id>:<seq>, or one with -done.")
    run_id, seq, done = match.groups()
    return EventId(None if run_id is None else RunId(run_id), Seq(int(seq)), done is not None)


def error_frame(data: bytes) -> bytes:
    """Return the frame that says why a run cannot be followed. ``data`` is JSON."""
    return b"event: run_error\ndata: %b\n\n" % data


def ping_frame(frame: bytes) -> bytes:
    """Return a keepalive of the log's dialect as a named event."""
    return b"event: ping\n" + frame


def expiry_frame(name: ExpiryName, at: datetime) -> bytes:
    """Return the event that says when a reader's token expires, or that it has expired."""
    return f'event: {name}\ndata: {{"expires_at":"{utc_text(at)}"}}\n\n'.encode()


class EventIds:
    """Puts ids before frames: ``<seq>``, or ``<run_id>:<seq>`` if made with a run."""

    __slots__ = ("_prefix", "_shared")

    def __init__(self, run_id: str | None = None) -> None:
        self._prefix = b"" if run_id is None else f"{run_id}:".encode()
        self._shared = _SHORT if run_id is None else _LONG

    def spliced(self, frames: bytes, first_seq: Seq) -> bytes:
        """Return the joined frames, the first of which has ``first_seq``, with their ids.

        Readers that pass the same object one after the other get the same object.
        """
        return self._shared(self._prefix, frames, first_seq)

    def snapshot_start(self, seq: Seq) -> bytes:
        """Return the beginning of the frame with the run's messages as of ``seq``.

        The JSON follows, and then ``FRAME_END``.
        """
        return b"event: snapshot\nid: %b%d\ndata: " % (self._prefix, seq)

    def done(self, last_seq: Seq) -> bytes:
        """Return the frame that says that the run has ended."""
        return b"event: done\nid: %b%d-done\n%b" % (self._prefix, last_seq, DONE)


class _Spliced:
    """Keeps the last result for many readers in a row.

    It compares identities: comparing contents costs more than splicing again.
    """

    __slots__ = ("_frames", "_prefix", "_result")

    def __init__(self) -> None:
        self._frames = self._prefix = self._result = b""

    def __call__(self, prefix: bytes, frames: bytes, first_seq: Seq) -> bytes:
        if not frames:
            return b""
        if frames is not self._frames or prefix != self._prefix:
            self._result = b"".join(
                [
                    b"id: %b%d\n%b" % (prefix, seq, frame)
                    for seq, frame in enumerate(split_frames(frames), first_seq)
                ]
            )
            self._frames, self._prefix = frames, prefix
        return self._result


_SHORT: Final = _Spliced()
_LONG: Final = _Spliced()
