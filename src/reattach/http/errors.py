"""HTTP responses for errors: one table from error classes to statuses, and one shape of body.

Every error body is a JSON object with a string ``detail`` for people and a stable ``code`` for
programs. Validation errors also list their faults under ``errors``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reattach.domain import errors
from reattach.domain.errors import connection
from reattach.domain.limits import MAX_ERROR_CHARS, MAX_VALIDATION_ERRORS
from reattach.domain.stream_tokens import PREFIX
from reattach.http.json import Fault, JsonResponse, invalid
from reattach.redact import MASK
from reattach.validation import explain

logger = structlog.get_logger(__name__)

STATUSES: Final[Mapping[type[errors.ReattachError], int]] = {
    errors.InvalidArgumentError: 400,
    errors.AnswerRefusedError: 400,
    errors.UnauthorizedError: 401,
    errors.ForbiddenError: 403,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.ExpiredError: 410,
    errors.LimitExceededError: 413,
    connection.InvalidHttpError: 400,
    connection.TunnelRefusedError: 405,
    connection.RequestTimeoutError: 408,
    errors.UnsupportedBodyError: 415,
    connection.ExpectationFailedError: 417,
    connection.HeadTooLargeError: 431,
    connection.HttpVersionError: 505,
    errors.MisdirectedError: 421,
    errors.ValidationFailedError: 422,
    errors.UrlRefusedError: 422,
    errors.UrlUnreachableError: 502,
    errors.QuotaError: 429,
    errors.NotImplementedHereError: 501,
    errors.UnavailableError: 503,
    errors.ModelAuthenticationError: 401,
    errors.ModelRateLimitError: 429,
    errors.ModelTimeoutError: 504,
    errors.ContextWindowError: 400,
    errors.EngineError: 500,
}
"""Statuses by error class. An error has the status of its nearest listed ancestor; otherwise
500."""

_FRAMEWORK_CODES: Final[Mapping[int, str]] = {
    404: "not_found",
    405: "method_not_allowed",
    413: "limit_exceeded",
    422: "validation_error",
}
_UNKNOWN: Final = {"detail": "An unknown error occurred", "code": "internal_error"}
_NEVER_RETRIED: Final = (errors.ConflictError, errors.NotImplementedHereError, errors.EngineError)
_DO_NOT_RETRY: Final = {"x-should-retry": "false"}
"""The SDKs retry 409, 429 and 5xx by themselves. For these errors that only costs time, and a
retried send whose model failed would start and pay for a second run."""

_PATH_EXAMPLES: Final[Mapping[str, str]] = {
    "agent_id": "agent-123e4567-e89b-42d3-8456-426614174000",
    "block_id": "block-123e4567-e89b-42d3-8456-426614174000",
    "conversation_id": "conv-123e4567-e89b-42d3-8456-426614174000",
    "message_id": "message-123e4567-e89b-42d3-8456-426614174000",
    "mcp_server_id": "mcp_server-123e4567-e89b-42d3-8456-426614174000",
    "tool_id": "tool-123e4567-e89b-42d3-8456-426614174000",
}


_STREAM_TOKEN: Final = re.compile(re.escape(PREFIX.encode()) + rb"[\w.=-]*")
"""A stream token or a part of one, in JSON. Errors repeat values of their requests."""


def status_of(error: errors.ReattachError) -> int:
    for ancestor in type(error).__mro__:
        status = STATUSES.get(ancestor)
        if status is not None:
            return status
    return 500


def error_response(error: errors.ReattachError) -> Response:
    """Return the response for ``error``; an error without a status becomes a generic 500."""
    status = status_of(error)
    if _is_unknown(error):
        return unknown_error_response(error)
    body: dict[str, object] = {**error.extra, "detail": error.detail, "code": error.code}
    if isinstance(error, errors.ModelError):
        body["error"] = {"type": error.code, "message": error.detail, "detail": None}
    headers: dict[str, str] = {}
    if isinstance(error, _NEVER_RETRIED):
        headers |= _DO_NOT_RETRY
    if isinstance(error, errors.UnavailableError | errors.QuotaError):
        headers["Retry-After"] = str(error.retry_after_seconds)
    response = JsonResponse(body, status_code=status, headers=headers)
    if PREFIX.encode() not in response.body:
        return response
    shown = _STREAM_TOKEN.sub(MASK.encode(), bytes(response.body))
    return Response(shown, status, headers, media_type=response.media_type)


def error_members(error: errors.ReattachError) -> dict[str, object]:
    """Return the status of ``error_response`` and the members of its body, for use in a stream.

    ``retry_after_seconds`` stands for the header ``Retry-After``.
    """
    if _is_unknown(error):
        logger.error("request failed", exc_info=error)
        return {"status": 500, **_UNKNOWN}
    members = {"status": status_of(error), **error.extra}
    if isinstance(error, errors.UnavailableError | errors.QuotaError):
        members["retry_after_seconds"] = error.retry_after_seconds
    return {**members, "code": error.code, "detail": error.detail}


def _is_unknown(error: errors.ReattachError) -> bool:
    return status_of(error) == 500 and not isinstance(error, errors.EngineError)


def unknown_error_response(error: Exception) -> Response:
    """Return a 500 that reveals nothing; the cause goes to the server's log."""
    logger.error("request failed", exc_info=error)
    return JsonResponse(_UNKNOWN, status_code=500)


async def on_reattach_error(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, errors.ReattachError)
    return error_response(error)


_OF_OPENAI: Final = re.compile(
    "/openai(/.*)?$|(/v1)*/(chat/completions|completions|responses|embeddings)(/.*)?$"
)
"""Paths of clients of OpenAI's API, also with a wrong base URL."""


def _is_of_openai(request: Request) -> bool:
    """Return whether the request is of a client of OpenAI's API, which this server has."""
    settings = request.app.state.context.settings
    return "openai" in settings.dialects and _OF_OPENAI.match(request.url.path) is not None


async def on_framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _FRAMEWORK_CODES.get(error.status_code, f"http_{error.status_code}")
    detail = str(error.detail)
    if error.status_code == 404:
        detail = "Not Found: no route has this path. GET /openapi.json lists the routes."
    if error.status_code == 404 and _is_of_openai(request):
        detail = (
            "Not Found: no route has this path. Clients of OpenAI's API need the base URL "
            "http://localhost:8283/openai/v1, with the host and port of this server."
        )
    elif error.status_code == 404 and "/v1/v1" in request.url.path:
        detail = (
            "Not Found: the path contains /v1 twice. Remove /v1 from the client's base URL, "
            "because clients add it: use http://localhost:8283, not http://localhost:8283/v1."
        )
    body = {"detail": detail, "code": code}
    return JsonResponse(body, status_code=error.status_code, headers=error.headers)


async def on_disconnect(request: Request, error: Exception) -> Response:  # noqa: ARG001
    body = {"detail": "Client disconnected", "code": "client_disconnected"}
    return JsonResponse(body, status_code=499)


async def on_invalid_request(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, RequestValidationError)
    found: Sequence[Mapping[str, Any]] = error.errors()
    # There may be as many as values in a body, and each takes time to explain.
    faults = [_fault(one, error.body) for one in found[:MAX_VALIDATION_ERRORS]]
    failed = invalid(faults, omitted=len(found) - len(faults))
    failed.extra = {**failed.extra, **_examples(found)}
    return error_response(failed)


def _fault(one: Mapping[str, Any], body: object) -> Fault:
    location = [
        part if isinstance(part, int) else _cut(str(part)) for part in _place(one["loc"], body)
    ]
    return Fault(location, _cut(explain(one)), str(one["type"]))


def _place(location: Sequence[str | int], body: object) -> list[str | int]:
    """Return the location without the names of types that Pydantic adds for unions."""
    first, *parts = location
    if first != "body" or body is None:
        return [*location]
    place: list[str | int] = [first]
    value: Any = body
    for number, part in enumerate(parts, 1):
        is_index = isinstance(part, int) and isinstance(value, list) and part < len(value)
        if is_index or (isinstance(value, dict) and part in value):
            value = value[part]
        elif number < len(parts) or not isinstance(value, dict):
            continue  # Only the last one can be a member that is missing.
        place.append(part)
    return place


def _examples(found: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Return an example of a well-formed id if an id in the path is the only fault."""
    if len(found) == 1 and len(found[0]["loc"]) == 2 and found[0]["loc"][0] == "path":
        example = _PATH_EXAMPLES.get(str(found[0]["loc"][1]))
        if example is not None:
            return {"examples": [example]}
    return {}


def _cut(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARS else f"{text[:MAX_ERROR_CHARS]}…"


class UnknownErrors:
    """ASGI middleware that turns unexpected exceptions into a generic 500, and logs each once.

    A response that has already started cannot become an error, so it is aborted.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            await unknown_error_response(error)(scope, receive, send)
