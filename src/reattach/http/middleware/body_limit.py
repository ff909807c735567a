"""Limits on request bodies, enforced before more of a body is held in memory."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reattach.domain.errors import LimitExceededError, ReattachError
from reattach.domain.limits import LINGER_SECONDS
from reattach.http.errors import error_response
from reattach.http.json import PARSE_QUEUE
from reattach.http.middleware.access import ACCESS, Access
from reattach.http.middleware.parse_queue import ParseQueue
from reattach.http.middleware.quotas import Quotas


class BodyLimit:
    """ASGI middleware that answers a body of more than ``max_bytes`` with 413.

    It runs after authentication, so no body is read without a key. ``quotas`` bounds the bytes held
    at a time, per tenant and in total.

    If Content-Length is too large, the 413 is sent at once; otherwise reading too much raises
    LimitExceededError. The rest of the body is read for a while and discarded: closing a connection
    with unread bytes resets it, and the client may never see the response (RFC 9112, section 9.6).
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
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > self._max_bytes):
            response = error_response(self._error())
            response.headers["connection"] = "close"  # the rest of the body is not awaited

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
        """Read the rest of the body, bounded in size and time."""
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
            f"The body of the request is larger than {self._max_bytes} bytes.",
            remedy="Send it in parts, or send large content by URL.",
        )
