"""The meanings of providers' failures: the error to report, and whether the answer may go on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

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
from reattach.domain.limits import MAX_SHOWN_NAME_CHARS

MAX_RETRY_AFTER_SECONDS: Final = 60.0
"""The longest wait that a provider may ask of a run, whose readers get only pings meanwhile."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """The error that a run reports for a failure."""

    error: type[EngineError]
    detail: str
    """``{model}`` stands for the model's handle, ``{status}`` for the status, if there is one."""
    may_pass: bool = False
    """Whether the answer may be continued."""
    waits: bool = False
    """Whether it is final if the provider asks for a wait above MAX_RETRY_AFTER_SECONDS."""


_FAILED: Final = Meaning(ModelError, "The provider of {model} failed{status}.")
_BROKE: Final = Meaning(ModelError, _FAILED.detail, may_pass=True)
_LOST: Final = Meaning(
    ModelError, "The connection to the provider of {model} failed.", may_pass=True
)
_TIMED_OUT: Final = Meaning(
    ModelTimeoutError, "The provider of {model} did not answer in time.", may_pass=True
)
_TIMED_OUT_FOR_NOW: Final = Meaning(ModelTimeoutError, _TIMED_OUT.detail, may_pass=True, waits=True)
_REFUSED_FOR_NOW: Final = Meaning(ModelError, _FAILED.detail, may_pass=True, waits=True)
_LIMITED: Final = Meaning(
    ModelRateLimitError,
    "The provider of {model} limits the rate of requests. Try again later.",
    may_pass=True,
    waits=True,
)
_NO_QUOTA: Final = Meaning(
    ModelRateLimitError, "The account at the provider of {model} has no quota left."
)
_TOO_LONG: Final = Meaning(
    ContextWindowError, "The conversation exceeds the context window of {model}."
)
_NO_ACCESS: Final = Meaning(
    ModelAuthenticationError,
    "Authentication failed with the provider of {model}. "
    "Check the API key in the server's settings.",
)
_NO_MODEL: Final = Meaning(
    ModelError, "The provider of {model} has no model of that name, or has another address."
)
_WITHHELD: Final = Meaning(ModelError, "The provider's filter withheld the answer of {model}.")
_EMPTY: Final = Meaning(ModelEmptyResponseError, "The model {model} ended without an answer.")


def cannot_be_read(error: Exception) -> bool:
    """Whether a part of the answer is not the JSON that it should be."""
    return isinstance(error, exceptions.ModelAPIError) and isinstance(error.__cause__, ValueError)


def _is_empty(error: Exception) -> bool:
    unexpected = isinstance(error, exceptions.UnexpectedModelBehavior)
    return unexpected and "without content" in str(error)


Sign = type[Exception] | int | str | Callable[[Exception], bool]
"""A class of Pydantic AI's, a status, a provider's name of the failure, or a condition."""

MEANINGS: Final[Sequence[tuple[Sequence[Sign], Meaning]]] = (
    # A later request would be refused too.
    ((exceptions.ModelQuotaExceededError, "insufficient_quota", "billing_error"), _NO_QUOTA),
    ((exceptions.ModelContextWindowExceededError,), _TOO_LONG),
    ((exceptions.ModelAuthenticationError,), _NO_ACCESS),
    ((exceptions.ModelNotFoundError,), _NO_MODEL),
    ((exceptions.ContentFilterError,), _WITHHELD),
    ((exceptions.ModelRequestRejectedError, 400, 401, 403, 404, 413, 422, 501, 505), _FAILED),
    # A later request may be accepted.
    ((exceptions.ModelRateLimitError, 429), _LIMITED),
    ((408,), _TIMED_OUT_FOR_NOW),
    ((409, 425), _REFUSED_FOR_NOW),
    # The answer was interrupted.
    (
        (
            exceptions.ModelTimeoutError,
            exceptions.ModelRequestTimeout,
            504,
            "timeout_error",
        ),
        _TIMED_OUT,
    ),
    ((exceptions.ModelConnectionError,), _LOST),
    (
        (
            exceptions.ModelServerError,
            exceptions.ModelUnavailableError,
            *(500, 502, 503, 529),
            *("server_error", "api_error", "internal_error", "internal_server_error"),
            *("overloaded", "overloaded_error"),
            cannot_be_read,
        ),
        _BROKE,
    ),
    ((_is_empty,), _EMPTY),
    ((Exception,), _FAILED),
)
"""The table of all failures. The first row of which one sign matches counts."""


def meant_error(error: Exception, model: str) -> EngineError:
    """Return the error to report for a failure of the provider of the handle ``model``."""
    meaning = next(one for signs, one in MEANINGS if any(_has(error, sign) for sign in signs))
    seconds = error.retry_after if isinstance(error, exceptions.ModelAPIError) else None
    is_long = seconds is not None and seconds > MAX_RETRY_AFTER_SECONDS
    if meaning.waits and is_long:
        return ModelRateLimitError(
            f"The provider of {model} accepts no request in the next {seconds:.0f} seconds."
        )
    status = _status(error)
    shown = f" (status {status})" if status else ""
    reported = meaning.error(meaning.detail.format(model=model, status=shown))
    reported.may_pass = meaning.may_pass and not _forbids_retries(error)
    if reported.may_pass and not is_long:
        reported.retry_after_seconds = seconds
    return reported


def ended_early(model: str, reason: str) -> ModelError:
    """Return the error for an answer that ended for a reason that no whole answer has."""
    return ModelError(
        f"The provider of {model} ended the answer before it was whole, for the reason "
        f"'{reason[:MAX_SHOWN_NAME_CHARS]}'. Send the message again, with a new OTID, to continue."
    )


def ended_empty(model: str) -> ModelEmptyResponseError:
    """Return the error for an answer without any output."""
    return ModelEmptyResponseError(_EMPTY.detail.format(model=model))


def _has(error: Exception, sign: Sign) -> bool:
    if isinstance(sign, int):
        return _status(error) == sign
    if isinstance(sign, str):
        return isinstance(error, exceptions.ModelAPIError) and sign in {
            error.provider_error_code,
            error.provider_error_type,
        }
    return isinstance(error, sign) if isinstance(sign, type) else sign(error)


def _status(error: Exception) -> int | None:
    return error.status_code if isinstance(error, exceptions.ModelHTTPError) else None


def _forbids_retries(error: Exception) -> bool:
    """Whether the provider says of a refused request that it would be refused again."""
    if not isinstance(error, exceptions.ModelHTTPError):
        return False
    # Within a stream, the headers are those of its accepted request.
    return error.provider_retry_hint is False and not error.in_stream
