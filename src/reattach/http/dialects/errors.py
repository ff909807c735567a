"""Errors in the words of a dialect.

Whatever refuses a request below the prefix of a dialect (the authentication, a quota, a check of
its body, a missing route) does so as everywhere. This middleware then writes the body anew.
"""

import json
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reattach.http.paths import path_of

ErrorBody = Callable[[int, Mapping[str, Any]], bytes]
"""Makes the body of a response from its status and the members of our own error."""

_LENGTH: Final = b"content-length"


class DialectErrors:
    """ASGI middleware that gives errors below each prefix the body of its dialect."""

    def __init__(self, app: ASGIApp, bodies: Mapping[str, ErrorBody]) -> None:
        self._app = app
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body_of = self._body_of(scope)
        if body_of is None:
            await self._app(scope, receive, send)
            return
        start: MutableMapping[str, Any] | None = None
        body = b""

        async def rewrite(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and _is_error(message):
                start = message
                return
            if start is None:
                await send(message)
                return
            body += message.get("body", b"")
            if len(body) < _length_of(start) and message.get("more_body"):
                return
            written = body_of(start["status"], _explained(_members(body)))
            start["headers"] = [
                (name, b"%d" % len(written) if name.lower() == _LENGTH else value)
                for name, value in start["headers"]
            ]
            head, start = start, None
            await send(head)
            await send({**message, "body": written})  # The response may go on without a body.

        await self._app(scope, receive, rewrite)

    def _body_of(self, scope: Scope) -> ErrorBody | None:
        if scope["type"] != "http":
            return None
        path = path_of(scope)
        for prefix, body_of in self._bodies.items():
            if path.startswith(prefix):
                return body_of
        return None


def _is_error(start: Message) -> bool:
    is_json = any(
        name.lower() == b"content-type" and value.startswith(b"application/json")
        for name, value in start["headers"]
    )
    return start["status"] >= 400 and is_json


def _length_of(start: Mapping[str, Any]) -> int:
    """Return the length of the body, which every error of ours announces."""
    lengths = [int(value) for name, value in start["headers"] if name.lower() == _LENGTH]
    return lengths[0] if lengths else sys.maxsize


def _explained(members: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the members of an error with the next step, which Letta's clients do not expect."""
    code, detail = members.get("code"), members.get("detail")
    if code == "unauthorized":
        detail = f"{detail}: the API key or the token is missing or not valid. {_KEYS}"
    elif code == "invalid_tool_call_ids":
        expected = ", ".join(members.get("expected") or ())
        detail = f"The request must answer each of these calls once, and no other: {expected}."
    return {**members, "detail": detail}


_KEYS: Final = "Send one as 'Authorization: Bearer <key>'; `reattach keys create` makes keys."


def _members(body: bytes) -> Mapping[str, Any]:
    try:
        members = json.loads(body)
    except ValueError:
        return {}
    return members if isinstance(members, dict) else {}
