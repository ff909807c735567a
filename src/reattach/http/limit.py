"""The bound on a request's body, kept before anybody holds more of it in memory."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reattach.errors import LimitExceededError
from reattach.http.errors import error_response


class BodyLimit:
    """ASGI middleware: a body of more than ``max_bytes`` gets a 413.

    One that says so beforehand gets it at once; else reading it raises LimitExceededError as soon
    as there is too much of it.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > self._max_bytes):
            response = error_response(self._error())
            response.headers["connection"] = "close"  # the rest of the body is not waited for
            await response(scope, receive, send)
            return
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    raise self._error()
            return message

        await self._app(scope, receive_bounded, send)

    def _error(self) -> LimitExceededError:
        return LimitExceededError(
            f"The body of the request is larger than {self._max_bytes} bytes. "
            "Send it in parts, or link to large content by URL."
        )
