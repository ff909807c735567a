"""Errors of providers and of Pydantic AI, as the errors that a run shows."""

import re
from typing import Final

from pydantic_ai import exceptions

from reattach.engine.base import Turn
from reattach.engine.pydantic_ai.body import Body, broken_off
from reattach.errors import (
    ContextWindowError,
    EngineError,
    ModelAuthenticationError,
    ModelEmptyResponseError,
    ModelError,
    ModelRateLimitError,
    ModelTimeoutError,
)

_IMAGE_REFUSALS: Final = frozenset({400, 404, 415, 422})
"""The statuses with which providers refuse images."""


def engine_error(error: Exception, turn: Turn, body: Body) -> EngineError:
    """The error to show for one of Pydantic AI, with a word on images if they may be the cause."""
    failure = _failure(error, turn.model)
    if isinstance(failure, ModelEmptyResponseError) and body.is_known and not body.has_end_mark:
        return broken_off(body, turn.model)
    status = error.status_code if isinstance(error, exceptions.ModelHTTPError) else None
    has_images = any(message.has_images for message in (*turn.history, *turn.input))
    if type(failure) is ModelError and status in _IMAGE_REFUSALS and has_images:
        return ModelError(f"{failure.detail} The conversation has images; it may not take them.")
    return failure


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
            return ModelRateLimitError(f"The account at the provider of {handle} is used up.")
        case exceptions.ModelRateLimitError():
            return ModelRateLimitError(
                f"The provider of {handle} limits the rate of requests. Try again later."
            )
        case exceptions.ModelTimeoutError() | exceptions.ModelRequestTimeout():
            return ModelTimeoutError(f"The provider of {handle} did not answer in time.")
        case exceptions.ModelContextWindowExceededError():
            return ContextWindowError(f"The conversation is longer than {handle} can take.")
        case exceptions.ModelNotFoundError():
            return ModelError(f"The provider of {handle} has no model of that name.")
        case exceptions.ModelConnectionError():
            return ModelError(f"The connection to the provider of {handle} failed.")
        case exceptions.UnexpectedModelBehavior() if "without content" in error.message:
            return ModelEmptyResponseError(f"The model {handle} ended without an answer.")
    if status in (408, 504):
        return ModelTimeoutError(f"The provider of {handle} did not answer in time.")
    told = f" (status {status})" if status else ""
    return ModelError(f"The provider of {handle} failed{told}.")


def _set_up_error(error: Exception, handle: str) -> EngineError:
    names = sorted(set(re.findall(r"`([A-Z][A-Z0-9_]*_[A-Z0-9_]+)`", str(error))))
    if names:
        return ModelAuthenticationError(
            f"There is no key for the provider of {handle}. "
            f"Set {' or '.join(names)} in the server's environment and start it again."
        )
    if isinstance(error, ImportError):
        return EngineError(f"A package for {handle} is missing. {error}")
    return EngineError(f"The model {handle} cannot be asked as it is set up.")
