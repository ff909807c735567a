"""Access log: one line per request, if the settings enable it."""

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reattach.http.middleware.access import ACCESS, Access
from reattach.http.middleware.followed import Head, head_of, path_for_logs

logger = structlog.get_logger(__name__)


class AccessLog:
    """ASGI middleware around the whole application.

    It logs at the end of the response; for a stream that this server's connection keeps, at its
    start. ``key`` is the id of the key or of the stream token, never the key itself. A stream has
    the id of its run and the cursor that it begins after.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        head: Head | None = None

        async def sending(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start":
                head = head_of(message, scope)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            client = scope.get("client")
            access: Access | None = scope.get(ACCESS)
            logger.info(
                "request",
                method=scope["method"],
                path=path_for_logs(scope),
                status=None if head is None else head.status,
                seconds=round(time.monotonic() - began, 4),
                client=client[0] if client else None,
                key=None if access is None else access.key_id,
                **_followed(head),
            )


def _followed(head: Head | None) -> dict[str, object]:
    """Return the run that the response streams, and the cursor that it begins after."""
    if head is None or not head.run_ids:
        return {}
    return {"run_id": ",".join(head.run_ids), "cursor": head.cursor}
