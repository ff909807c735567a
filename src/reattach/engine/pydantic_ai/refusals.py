"""Refusals of a provider that is called without Pydantic AI, reported in the same words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic_ai import exceptions

from reattach.domain.errors import EngineError
from reattach.engine.base import Turn
from reattach.engine.pydantic_ai.body import Body
from reattach.engine.pydantic_ai.failures import engine_error

_NO_QUOTA: Final = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
)
_Category = type[
    exceptions.ModelRateLimitError
    | exceptions.ModelQuotaExceededError
    | exceptions.ModelRequestRejectedError
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that a provider refused or did not answer."""

    status: int | None = None
    """The HTTP status, or the one that the same error has before a stream opens. None: the
    connection failed."""
    code: str | None = None
    """The provider's own code."""
    body: object = None
    """The error object, or the provider's message."""
    retry_after_seconds: float | None = None
    timed_out: bool = False


def refusal_error(
    refusal: Refusal, turn: Turn, *, base_url: str | None, secrets: Sequence[str] = ()
) -> EngineError:
    """Return the error to report, as ``engine_error`` does for one of Pydantic AI."""
    return engine_error(
        _provider_error(refusal, turn.model), turn, Body(), base_url=base_url, secrets=secrets
    )


def _provider_error(refusal: Refusal, handle: str) -> exceptions.ModelAPIError:
    if refusal.timed_out:
        return exceptions.ModelTimeoutError(handle, "no answer in time")
    if refusal.status is None:
        return exceptions.ModelConnectionError(handle, "no connection")
    return exceptions.ModelHTTPError.for_category(
        _category(refusal.status, refusal.code),
        status_code=refusal.status,
        model_name=handle,
        body=refusal.body,
        provider_error_code=refusal.code,
        retry_after=refusal.retry_after_seconds,
    )


def _category(status: int, code: str | None) -> _Category | None:
    if code in _NO_QUOTA or status == 402:
        return exceptions.ModelQuotaExceededError
    if code == "context_length_exceeded":
        return exceptions.ModelContextWindowExceededError
    if status in {401, 403}:
        return exceptions.ModelAuthenticationError
    if status == 404:
        return exceptions.ModelNotFoundError
    return exceptions.ModelRateLimitError if status == 429 else None
