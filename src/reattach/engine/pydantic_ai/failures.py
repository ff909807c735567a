"""Errors of providers and of Pydantic AI as the errors that a run reports."""

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from pydantic_ai import exceptions

from reattach.domain.errors import (
    ContextWindowError,
    EngineError,
    ModelAuthenticationError,
    ModelEmptyResponseError,
    ModelError,
    ModelRateLimitError,
    ModelTimeoutError,
)
from reattach.domain.limits import MAX_ERROR_CHARS
from reattach.engine.base import Turn
from reattach.engine.pydantic_ai.body import Body, broken_off
from reattach.redact import redact_text

_NO_SUCH_PATH: Final = frozenset({404, 405})
_VERSION: Final = re.compile(r"/v\d")

_IMAGE_REFUSALS: Final = frozenset({400, 404, 415, 422})
"""The statuses with which providers refuse images."""


def engine_error(
    error: Exception, turn: Turn, body: Body, *, base_url: str | None, secrets: Sequence[str] = ()
) -> EngineError:
    """Return the error to report for one of Pydantic AI, with the provider's own message.

    The message is redacted, ``secrets`` first, and cut. ``base_url`` is the model's.
    """
    failure = _failure(error, turn.model)
    if isinstance(failure, ModelEmptyResponseError) and body.is_known and not body.has_end_mark:
        return broken_off(body, turn.model)
    words = redact_text(_words(error), max_chars=MAX_ERROR_CHARS, secrets=secrets)
    more = [f"It says: {words}"] if words else []
    status = error.status_code if isinstance(error, exceptions.ModelHTTPError) else None
    if hint := _base_url_hint(turn.model, status, words, base_url):
        more.append(hint)
    elif type(failure) is ModelError and status in _IMAGE_REFUSALS and _has_images(turn):
        more.append("The conversation has images, which the model may not accept.")
    return type(failure)(" ".join([failure.detail, *more]))


def _has_images(turn: Turn) -> bool:
    return any(message.has_images for message in (*turn.history, *turn.input))


def _words(error: Exception) -> str:
    """Return the provider's own message, or an empty text."""
    body = error.body if isinstance(error, exceptions.ModelAPIError) else None
    for _ in range(3):  # Providers nest it at different depths.
        if isinstance(body, list) and body:
            body = body[0]
        if not isinstance(body, dict):
            break
        members = (body.get(name) for name in ("error", "message", "detail", "msg", "errors"))
        body = next((member for member in members if member), None)
    return body if isinstance(body, str) else ""


def _base_url_hint(handle: str, status: int | None, words: str, base_url: str | None) -> str | None:
    """Return the remedy for a base URL of a wrong depth, which causes a path not found."""
    if base_url is None or status not in _NO_SUCH_PATH or "model" in words.lower():
        return None
    path = urlsplit(base_url).path
    has_version = _VERSION.search(path) is not None
    if handle.startswith("anthropic/"):
        if not has_version:
            return None
        return (
            "The base URL of Anthropic's API has no version: leave out /v1 in ANTHROPIC_BASE_URL."
        )
    if handle.startswith("openai/") and not has_version:
        return (
            "The base URL has no version in its path, and most servers want one: set "
            "REATTACH_OPENAI_BASE_URL to a URL that ends in /v1."
        )
    return None


def _failure(error: Exception, handle: str) -> EngineError:
    status = error.status_code if isinstance(error, exceptions.ModelHTTPError) else None
    match error:
        case exceptions.UserError() | ImportError():
            return _set_up_error(error, handle)
        case exceptions.ModelAuthenticationError():
            return ModelAuthenticationError(
                f"Authentication failed with the provider of {handle}. "
                "Check the API key in the server's settings."
            )
        case exceptions.ModelQuotaExceededError():
            return ModelRateLimitError(
                f"The account at the provider of {handle} has no quota left."
            )
        case exceptions.ModelRateLimitError():
            return ModelRateLimitError(
                f"The provider of {handle} limits the rate of requests. Try again later."
            )
        case exceptions.ModelTimeoutError() | exceptions.ModelRequestTimeout():
            return ModelTimeoutError(f"The provider of {handle} did not answer in time.")
        case exceptions.ModelContextWindowExceededError():
            return ContextWindowError(f"The conversation exceeds the context window of {handle}.")
        case exceptions.ModelNotFoundError():
            return ModelError(
                f"The provider of {handle} has no model of that name, or has another address."
            )
        case exceptions.ModelConnectionError():
            return ModelError(f"The connection to the provider of {handle} failed.")
        case exceptions.UnexpectedModelBehavior() if "without content" in error.message:
            return ModelEmptyResponseError(f"The model {handle} ended without an answer.")
    if status in (408, 504):
        return ModelTimeoutError(f"The provider of {handle} did not answer in time.")
    suffix = f" (status {status})" if status else ""
    return ModelError(f"The provider of {handle} failed{suffix}.")


def _set_up_error(error: Exception, handle: str) -> EngineError:
    names = sorted(set(re.findall(r"`([A-Z][A-Z0-9_]*_[A-Z0-9_]+)`", str(error))))
    if names:
        return ModelAuthenticationError(
            f"There is no key for the provider of {handle}. "
            f"Set {' or '.join(names)} in the server's environment and start it again."
        )
    if isinstance(error, ImportError):
        return EngineError(f"A package for {handle} is missing. {error}")
    return EngineError(f"The model {handle} is not set up correctly.")
