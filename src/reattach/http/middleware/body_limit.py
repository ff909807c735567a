"""The bounds on requests' bodies, kept before anybody holds more of them in memory."""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reattach.domain.errors import LimitExceededError, ReattachError
from reattach.domain.limits import LINGER_SECONDS
from reattach.http.errors import error_response
from reattach.http.json import PARSE_QUEUE
from reattach.http.middleware.access import ACCESS, Access
from reattach.http.middleware.parse_queue import ParseQueue
from reattach.http.middleware.quotas import Quotas


class BodyLimit:
    """ASGI middleware: a body of more than ``max_bytes`` gets a 413.

    It stands behind the authentication, so no body is read for a request without a key. The bytes
    that are held at a time, for each tenant and in all, are bounded by ``quotas``.

    One that says so beforehand gets it at once; else reading it raises LimitExceededError when
    there is too much of it. What is still on its way is taken for a while and thrown away: to close
    a connection with unread bytes resets it, and the client may never see the answer (RFC 9112,
    section 9.6).
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, quotas: Quotas, parse_queue: ParseQueue
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._quotas = quotas
        self._parse_queue = parse_queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > self._max_bytes):
            response = error_response(self._error())
            response.headers["connection"] = "close"  # not all of the body is waited for

            async def send_and_linger(message: Message) -> None:
                if message["type"] == "http.response.body":
                    await send({**message, "more_body": True})
                    await self._discard(receive)
                    message = {**message, "body": b""}
                await send(message)

            await response(scope, receive, send_and_linger)
            return
        access: Access | None = scope.get(ACCESS)
        use = self._quotas.of(None) if access is None else access.use
        scope[PARSE_QUEUE] = self._parse_queue
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                size_bytes = len(message.get("body", b""))
                try:
                    if received + size_bytes > self._max_bytes:
                        raise self._error()
                    use.hold_body(size_bytes)
                except ReattachError:
                    if message.get("more_body"):
                        await self._discard(receive)
                    raise
                received += size_bytes
            return message

        try:
            await self._app(scope, receive_bounded, send)
        finally:
            use.release_body(received)

    async def _discard(self, receive: Receive) -> None:
        """Take the rest of the body, at most as much as a body may have, and not for long."""
        left_bytes = self._max_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while left_bytes > 0:
                    message = await receive()
                    left_bytes -= len(message.get("body", b""))
                    if not message.get("more_body"):
                        return

    def _error(self) -> LimitExceededError:
        return LimitExceededError(
            f"The body of the request is larger than {self._max_bytes} bytes. "
            "Send it in parts, or link to large content by URL."
        )
