"""A short way for well-formed resumes, which come in crowds: past the routing and all before it.

It never refuses anything. Whatever is unusual about a request, or turns out to be wrong with it,
goes the long way, so that there is one place where each error is made.
"""

import re
from typing import Final

import structlog
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from reattach.domain.errors import ReattachError
from reattach.domain.ids import UUID4
from reattach.domain.limits import FAST_PATH_BODY_BYTES
from reattach.http.api.resuming import conversation_stream, run_stream
from reattach.http.context import Context
from reattach.http.json import parse
from reattach.http.middleware.access import ACCESS
from reattach.http.middleware.auth import Authenticator
from reattach.http.schemas.resuming import ResumeBody
from reattach.records.base import KeyScope

logger = structlog.get_logger(__name__)

_PATH: Final = re.compile(
    rf"/v1/(?:conversations/(default|(?:conv|agent)-{UUID4})|runs/(run-{UUID4}))/stream"
)
_VARY: Final = (b"vary", b"Origin")
"""What the middleware for other origins says to those who come from none."""

_LONG_HEADERS: Final = frozenset({b"expect", b"origin", b"transfer-encoding"})
_LENGTH: Final = re.compile(rb"[0-9]{1,6}")


class FastPath:
    """Answers resumes as their routes do, in the same bytes."""

    def __init__(self, context: Context, authenticator: Authenticator) -> None:
        self._context = context
        self._authenticator = authenticator

    async def taken(self, scope: Scope, receive: Receive, send: Send) -> Receive | None:
        """None if the request was answered; else what the long way is to receive from."""
        place = _PATH.fullmatch(_path(scope))
        if place is None or scope["method"] != "POST" or scope.get("query_string"):
            return receive
        headers = dict(scope["headers"])
        if not _is_usual(headers) or len(headers) != len(scope["headers"]):
            return receive
        message = await receive()
        if message["type"] != "http.request" or message.get("more_body"):  # It has not all come.
            return _again(message, receive)
        try:
            access = await self._authenticator.access(scope, headers)
            access.require(KeyScope.READ)
            access.use.admit()
            scope[ACCESS], tenant = access, access.tenant
            body = ResumeBody.model_validate(parse(message["body"]))
            conversation_id, run_id = place.groups()
            response = (
                await conversation_stream(self._context, tenant, conversation_id, body)
                if conversation_id
                else await run_stream(self._context, tenant, run_id, body)
            )
        except (ReattachError, ValidationError):
            return _again(message, receive)
        except Exception:
            logger.exception("resume goes the long way")
            return _again(message, receive)
        # The long way waits for a log that is about to be opened, and once is enough.
        error = await response.respond(scope, receive, send, _VARY, waits=False)
        return None if error is None else _again(message, receive)


def _path(scope: Scope) -> str:
    """The path below where the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root) else path


def _is_usual(headers: dict[bytes, bytes]) -> bool:
    length = headers.get(b"content-length", b"")
    return (
        headers.get(b"content-type") == b"application/json"
        and _LENGTH.fullmatch(length) is not None
        and 0 < int(length) <= FAST_PATH_BODY_BYTES
        and _LONG_HEADERS.isdisjoint(headers)
    )


def _again(message: Message, receive: Receive) -> Receive:
    """``receive``, but for what it has given already."""
    given = [message]

    async def again() -> Message:
        return given.pop() if given else await receive()

    return again
