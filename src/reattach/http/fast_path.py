"""A fast path for well-formed resume requests, which arrive in crowds: it bypasses routing.

It never refuses a request. Anything unusual or invalid goes through the regular routes, so that
each error is created in one place.
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
from reattach.http.paths import path_of
from reattach.http.schemas.resuming import ResumeBody
from reattach.records.base import KeyScope

logger = structlog.get_logger(__name__)

_PATH: Final = re.compile(
    rf"/v1/(?:conversations/(default|(?:conv|agent)-{UUID4})|runs/(run-{UUID4}))/stream"
)
_VARY: Final = (b"vary", b"Origin")
"""The header that the CORS middleware adds to responses to requests without an ``Origin``."""

_UNUSUAL_HEADERS: Final = frozenset(
    {b"content-encoding", b"expect", b"origin", b"transfer-encoding"}
)
_LENGTH: Final = re.compile(rb"[0-9]{1,6}")


class FastPath:
    """Answers resume requests with the same bytes as their routes."""

    def __init__(self, context: Context, authenticator: Authenticator) -> None:
        self._context = context
        self._authenticator = authenticator

    async def try_answer(self, scope: Scope, receive: Receive, send: Send) -> Receive | None:
        """Answer and return None, or return the ``receive`` for the regular routes."""
        place = _PATH.fullmatch(path_of(scope))
        if place is None or scope["method"] != "POST" or scope.get("query_string"):
            return receive
        headers = dict(scope["headers"])
        if not is_usual(headers) or len(headers) != len(scope["headers"]):
            return receive
        message = await receive()
        if message["type"] != "http.request" or message.get("more_body"):  # It is not complete.
            return _replay(message, receive)
        try:
            access = await self._authenticator.access(scope, headers)
            access.require(KeyScope.READ)  # Stream tokens take the regular way.
            access.use.admit()
            scope[ACCESS], tenant = access, access.tenant
            body = ResumeBody.model_validate(parse(message["body"]))
            conversation_id, run_id = place.groups()
            response = (
                await conversation_stream(self._context, access, conversation_id, body)
                if conversation_id
                else await run_stream(self._context, tenant, run_id, body)
            )
        except (ReattachError, ValidationError):
            return _replay(message, receive)
        except Exception:
            logger.exception("fast path failed; using the regular route")
            return _replay(message, receive)
        # Only the regular route waits for a log that is about to be opened.
        error = await response.respond(scope, receive, send, _VARY, waits=False)
        return None if error is None else _replay(message, receive)


def is_usual(headers: dict[bytes, bytes]) -> bool:
    """Return whether a request with these headers may take the fast path."""
    length = headers.get(b"content-length", b"")
    return (
        headers.get(b"content-type") == b"application/json"
        and _LENGTH.fullmatch(length) is not None
        and 0 < int(length) <= FAST_PATH_BODY_BYTES
        and _UNUSUAL_HEADERS.isdisjoint(headers)
    )


def _replay(message: Message, receive: Receive) -> Receive:
    """Return a ``receive`` that returns ``message`` first."""
    pending = [message]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again
