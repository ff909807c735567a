"""A log as an event stream: each write is a data event and the control event after it."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

from typing_extensions import override

from reattach.domain.ids import Seq
from reattach.http.stream.framing import NOT_BUFFERED, Framing
from reattach.log.base import Slice
from reattach.runs.following.follow import Following
from reattach.wire.dialects.durable_streams import Content, control_event, data_event
from reattach.wire.event_source import KEEPALIVE, ExpiryName

EVENTS_SECONDS: Final = 60.0
"""The age at which an event stream ends, as the protocol recommends; its client asks again."""

SAFE_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers that keep browsers from taking a log for something else. Requests by CORS pass them."""

_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"private, no-cache, no-store, no-transform"),
    NOT_BUFFERED,
    *((name.encode(), value.encode()) for name, value in SAFE_HEADERS.items()),
)


def _expiry_comment(name: ExpiryName, at: datetime) -> bytes:  # noqa: ARG001
    """Return a comment: the protocol has no event for it, and the next request is refused."""
    return f": the stream token is {name}\n".encode()


class ControlledFraming(Framing):
    """The form of Durable Streams.

    The client knows its offset from the last control event, and asks again from there after a body
    that ends. It gives up at a body that breaks. So bodies end properly whenever the server cuts
    them off, and the next request learns the reason.
    """

    ends_properly = True
    expiry_frame = staticmethod(_expiry_comment)

    def __init__(self, content: Content, next_cursor: Callable[[], str]) -> None:
        self.headers = (*_HEADERS, *content.event_headers)
        self.splice = self._splice
        self._content = content
        self._next_cursor = next_cursor
        self._following: Following | None = None
        self._opening = b""
        self._timer: asyncio.TimerHandle | None = None

    @override
    def attach(self, following: Following) -> None:
        self._following = following
        if not following.has_more:  # A client waits for its first control event.
            self._opening = self._control(following.cursor, up_to_date=True)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(EVENTS_SECONDS, following.rotate)

    @override
    def take_opening(self) -> bytes:
        opening, self._opening = self._opening, b""
        return opening

    @override
    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @override
    def keepalive(self, at: datetime, last_seq: Seq, run_id: str) -> bytes:
        return KEEPALIVE

    @override
    def done(self, last_seq: Seq) -> bytes:
        return control_event(last_seq, up_to_date=True, closed=True)

    def _splice(self, piece: Slice) -> bytes:
        if not piece.frames:
            return b""
        following = self._following
        up_to_date = following is None or piece.last_seq >= following.last_seq
        data = _shared_data(self._content, piece.frames)
        return data + self._control(piece.last_seq, up_to_date=up_to_date)

    def _control(self, seq: Seq, *, up_to_date: bool) -> bytes:
        return control_event(seq, cursor=self._next_cursor(), up_to_date=up_to_date)


class _SharedData:
    """Keeps the last data event for many readers in a row, as ``event_source`` keeps frames."""

    def __init__(self) -> None:
        self._content: Content | None = None
        self._frames = self._event = b""

    def __call__(self, content: Content, frames: bytes) -> bytes:
        if frames is not self._frames or content is not self._content:
            self._event = data_event(content, frames)
            self._content, self._frames = content, frames
        return self._event


_shared_data: Final = _SharedData()
