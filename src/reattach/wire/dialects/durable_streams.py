"""The Durable Streams protocol, version 1.0: positions, messages and control events of a log.

Unlike the other dialects it is no fold: a message is the JSON of one event, copied from its frame.
An offset is the number of events before it, padded so that offsets sort as texts.
"""

import re
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec

from reattach.domain.ids import Seq

OFFSET_DIGITS: Final = 16
START: Final = "-1"
NOW: Final = "now"

CURSOR_SECONDS: Final = 20
"""The length of the intervals that ``stream-cursor`` counts."""

MAX_CURSOR_DIGITS: Final = 16

_CURSOR_EPOCH: Final = datetime(2024, 10, 9, tzinfo=UTC)
_OFFSET: Final = re.compile(rf"[0-9]{{{OFFSET_DIGITS}}}")
_NAME: Final = b"event: error\n"
_BETWEEN: Final = b"\n\ndata: "
_FIRST: Final = len(b"data: ")

_encode: Final = msgspec.json.Encoder().encode


def offset_text(seq: Seq) -> str:
    """Return the offset after the event ``seq``; 0: before the first one."""
    return f"{seq:0{OFFSET_DIGITS}}"


def parse_offset(text: str) -> Seq | None:
    """Return the number of events before an offset, or None for ``now``.

    Raises:
        ValueError: It is not an offset of this module.
    """
    if text == NOW:
        return None
    if text == START:
        return Seq(0)
    if _OFFSET.fullmatch(text) is None:
        raise ValueError(
            f"It is not an offset: {OFFSET_DIGITS} digits as in Stream-Next-Offset, '{START}' for "
            f"the start, or '{NOW}' for the end."
        )
    return Seq(int(text))


def cursor_text(at: datetime, given: str | None) -> str:
    """Return the cursor of a live response: its interval, and more than the client's own cursor.

    Caches between clients and the server use it to distinguish requests. A cursor that is no
    number is ignored.
    """
    interval = int((at - _CURSOR_EPOCH).total_seconds()) // CURSOR_SECONDS
    if given is not None and given.isdecimal() and len(given) <= MAX_CURSOR_DIGITS:
        interval = max(interval, int(given) + 1)
    return str(interval)


def etag(first: Seq, next_: Seq, *, closed: bool) -> str:
    """Return the entity tag of the events between two offsets; ``closed``: none will follow."""
    return f'"{first}:{next_}{":c" if closed else ""}"'


class Content(Protocol):
    """The form of the messages in a log."""

    content_type: str
    event_headers: tuple[tuple[bytes, bytes], ...]
    """Further headers of event streams, which describe their data."""

    def body(self, frames: bytes) -> bytes:
        """Return the body of a response with the messages of joined frames."""

    def lines(self, frames: bytes) -> list[bytes]:
        """Return the lines of a data event with the messages of joined frames, at least one.

        Clients drop a space at the start of a line, so a line that begins with one has two.
        """


class JsonContent:
    """Events as JSON: every body and every data event is an array of them."""

    content_type = "application/json"
    event_headers: tuple[tuple[bytes, bytes], ...] = ()

    def body(self, frames: bytes) -> bytes:
        # Line ends are only between frames, because JSON escapes those in texts.
        joined = frames[:-2].replace(_NAME, b"").replace(_BETWEEN, b",")
        return b"[%b]" % joined[_FIRST:]

    def lines(self, frames: bytes) -> list[bytes]:
        return [self.body(frames)]


EVENTS: Final = JsonContent()


def data_event(content: Content, frames: bytes) -> bytes:
    """Return the event with the messages of joined frames. A control event must follow."""
    lines = b"".join([b"data:%b\n" % line for line in content.lines(frames)])
    return b"event: data\n%b\n" % lines


def control_event(
    next_: Seq, *, cursor: str | None = None, up_to_date: bool = False, closed: bool = False
) -> bytes:
    """Return the event that says where the client is.

    ``up_to_date``: it has all events there are; ``closed``: none will follow.
    """
    shown = b"" if cursor is None or closed else b',"streamCursor":%b' % _encode(cursor)
    return b'event: control\ndata:{"streamNextOffset":"%0*d"%b%b%b}\n\n' % (
        OFFSET_DIGITS,
        next_,
        shown,
        b',"upToDate":true' if up_to_date else b"",
        b',"streamClosed":true' if closed else b"",
    )
