"""Errors of providers and of Pydantic AI as the errors that a run reports."""

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from pydantic_ai import exceptions

from reattach.domain.errors import (
    EngineError,
    ModelAuthenticationError,
    ModelEmptyResponseError,
    ModelError,
)
from reattach.domain.limits import MAX_ERROR_CHARS
from reattach.engine.base import Turn
from reattach.engine.pydantic_ai.body import Body, broken_off
from reattach.engine.pydantic_ai.meanings import cannot_be_read, meant_error
from reattach.redact import redact_text

_NO_SUCH_PATH: Final = frozenset({404, 405})
_VERSION: Final = re.compile(r"/v\d")

_IMAGE_REFUSALS: Final = frozenset({400, 404, 415, 422})
"""The statuses with which providers refuse images."""

_PREFIX_REFUSAL: Final = re.compile(r"prefill|model turn|end with a user", re.IGNORECASE)
"""Words with which providers refuse a request that ends with the beginning of the answer."""


def engine_error(
    error: Exception,
    turn: Turn,
    body: Body,
    *,
    base_url: str | None,
    secrets: Sequence[str] = (),
    sent_prefix: bool = False,
) -> EngineError:
    """Return the error to report for one of Pydantic AI, with the provider's own message.

    The message is redacted, ``secrets`` first, and cut. ``base_url`` is the model's. An answer may
    be continued after a refused prefix, in another way.
    """
    if isinstance(error, exceptions.UserError | ImportError):
        return _set_up_error(error, turn.model)
    failure = meant_error(error, turn.model)
    if isinstance(failure, ModelEmptyResponseError) and body.is_known and not body.has_end_mark:
        return broken_off(body, turn.model)
    if cannot_be_read(error) and body.is_known and not body.is_stream:
        return broken_off(body, turn.model)
    words = redact_text(_words(error), max_chars=MAX_ERROR_CHARS, secrets=secrets)
    more = [f"It says: {words}"] if words else []
    status = error.status_code if isinstance(error, exceptions.ModelHTTPError) else None
    if hint := _base_url_hint(turn.model, status, words, base_url):
        more.append(hint)
    elif type(failure) is ModelError and status in _IMAGE_REFUSALS and _has_images(turn):
        more.append("The conversation has images, which the model may not accept.")
    explained = type(failure)(" ".join([failure.detail, *more]))
    explained.may_pass = failure.may_pass or (sent_prefix and is_prefix_refusal(error))
    explained.retry_after_seconds = failure.retry_after_seconds
    return explained


def is_prefix_refusal(error: Exception) -> bool:
    """Whether the provider refused to continue a text that the request gave as its answer's."""
    is_refusal = isinstance(error, exceptions.ModelHTTPError) and error.status_code == 400
    return is_refusal and _PREFIX_REFUSAL.search(_words(error)) is not None


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
    if handle.startswith(("openai/", "openai-responses/")) and not has_version:
        return (
            "The base URL has no version in its path, and most servers want one: set "
            "REATTACH_OPENAI_BASE_URL to a URL that ends in /v1."
        )
    return None


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
