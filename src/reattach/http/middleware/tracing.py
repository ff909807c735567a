"""Spans of requests that send messages or follow runs, while traces are on."""

import re
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reattach.http.middleware.followed import head_of, path_for_logs
from reattach.http.paths import path_of
from reattach.telemetry.traces import Answer, TracedRequest, Traces

_SENDS: Final = re.compile(
    r"/v1/(?:(conversations)/[^/]+/messages|(agents)/[^/]+/messages(|/stream|/async))"
)
_RESUMES: Final = re.compile(r"/v1/(?:(conversations|runs)/[^/]+/stream|streams)")
_PARAMETERS: Final = {
    "conversations": "{conversation_id}",
    "agents": "{agent_id}",
    "runs": "{run_id}",
}


class Tracing:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope) if scope["type"] == "http" else ""
        if (route := _send_route(scope, path)) is not None:
            with self._traces.sending(_request(scope, route)) as span:
                await self._app(scope, receive, _noting(send, scope, span.end))
        elif (route := _resume_route(scope, path)) is not None:
            await self._resume(_request(scope, route), scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _resume(
        self, request: TracedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        is_answered = False

        def end(answer: Answer) -> None:
            nonlocal is_answered
            is_answered = True
            self._traces.resumed(request, answer)

        try:
            await self._app(scope, receive, _noting(send, scope, end))
        except BaseException as error:
            if not is_answered:
                end(Answer(None, error=error))
            raise


def _noting(send: Send, scope: Scope, end: Callable[[Answer], None]) -> Send:
    """Return a ``send`` that calls ``end`` when the head of the response goes out."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            head = head_of(message, scope)
            end(Answer(head.status, head.run_ids, head.cursor, head.traceparents))
        await send(message)

    return sending


def _send_route(scope: Scope, path: str) -> str | None:
    match = _SENDS.fullmatch(path) if path and scope["method"] == "POST" else None
    if match is None:
        return None
    kind = match[1] or match[2]
    return f"/v1/{kind}/{_PARAMETERS[kind]}/messages{match[3] or ''}"


def _resume_route(scope: Scope, path: str) -> str | None:
    match = _RESUMES.fullmatch(path) if path and scope["method"] in {"GET", "POST"} else None
    if match is None:
        return None
    kind = match[1]
    return "/v1/streams" if kind is None else f"/v1/{kind}/{_PARAMETERS[kind]}/stream"


def _request(scope: Scope, route: str) -> TracedRequest:
    return TracedRequest(
        scope["method"], route, path_for_logs(scope), scope["scheme"], scope["headers"]
    )
