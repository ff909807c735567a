"""A log line for each request, where the settings ask for it."""

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = structlog.get_logger(__name__)


class AccessLog:
    """ASGI middleware around everything else.

    The line comes with the end of the response; for a stream that is kept on a connection of this
    server, with its beginning. It has the path as it came, percent-encoded, and no query, which may
    hold anything.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
            client = scope.get("client")
            logger.info(
                "request",
                method=scope["method"],
                path=path.partition(b"?")[0].decode("ascii", "backslashreplace"),
                status=status or None,
                seconds=round(time.monotonic() - began, 4),
                client=client[0] if client else None,
            )
