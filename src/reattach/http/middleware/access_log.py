"""Access log: one line per request, if the settings enable it."""

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = structlog.get_logger(__name__)


class AccessLog:
    """ASGI middleware around the whole application.

    It logs at the end of the response; for a stream that this server's connection keeps, at its
    start. The path is logged as received, percent-encoded, without the query, which may contain
    secrets.
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
