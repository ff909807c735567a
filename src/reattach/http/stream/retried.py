"""Errors that pass, as streams that make an ``EventSource`` come back."""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reattach.http.paths import page_resource
from reattach.http.stream.framing import EVENT_STREAM, NOT_BUFFERED

_PASSING: Final = frozenset({429, 503})
_REPLACED: Final = frozenset(
    {b"cache-control", b"content-length", b"content-type", b"retry-after", b"x-accel-buffering"}
)


class RetriedStreams:
    """ASGI middleware for the streams of pages.

    An ``EventSource`` gives up at every status except 200 and 204. So an error that says when to
    try again becomes a stream that says it, with the error as a comment, and ends.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if page_resource(scope) == "stream":
            send = _replacing_errors(send)
        await self._app(scope, receive, send)


def _replacing_errors(send: Send) -> Send:
    retry_ms: int | None = None

    async def replace(message: Message) -> None:
        nonlocal retry_ms
        if message["type"] == "http.response.start" and message["status"] in _PASSING:
            headers = dict(message["headers"])
            retry_ms = int(headers.get(b"retry-after", b"1")) * 1000
            kept = [one for one in message["headers"] if one[0] not in _REPLACED]
            kept += [EVENT_STREAM, (b"cache-control", b"no-store, no-transform"), NOT_BUFFERED]
            message = {**message, "status": 200, "headers": kept}
        elif message["type"] == "http.response.body" and retry_ms is not None:
            # The body of an error is one line of JSON, and it is whole.
            body = b": %b\nretry: %d\n\n" % (message["body"], retry_ms)
            message = {**message, "body": body}
        await send(message)

    return replace
