"""Failures of the Responses API as the errors that a run reports.

An error that may pass leaves the answer at the provider, so it can be followed again.
"""

import email.utils
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import openai

from reattach.domain.clock import Clock
from reattach.domain.errors import EngineError, ModelError
from reattach.domain.limits import MAX_ERROR_CHARS
from reattach.engine.base import Turn
from reattach.engine.pydantic_ai.body import Body, broken_off
from reattach.engine.pydantic_ai.meanings import ended_early, ended_empty
from reattach.engine.pydantic_ai.refusals import Refusal, refusal_error

_PASSING_CODES: Final = {
    "api_error": 500,
    "internal_error": 500,
    "overloaded_error": 529,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "server_is_overloaded": 503,
    "timeout": 504,
    "vector_store_timeout": 504,
}
"""The codes of errors within an answer that may pass, with the statuses that they have before."""


@dataclass(frozen=True, slots=True)
class Failures:
    """Makes the errors of one turn. Texts are safe to show; ``secrets`` are redacted."""

    turn: Turn
    clock: Clock
    base_url: str | None = None
    secrets: Sequence[str] = ()

    def from_client(self, error: Exception) -> EngineError:
        """Return the error for one that the client raised."""
        match error:
            case openai.APITimeoutError():
                return self._refused(Refusal(timed_out=True))
            case openai.APIConnectionError():
                return self._refused(Refusal())
            case openai.APIStatusError(status_code=status, code=code, body=body):
                return self._refused(Refusal(status, code, body, self._retry_after(error)))
            case openai.APIError(code=code, message=message):  # within a stream
                return self.within_answer(code, message)
            case openai.OpenAIError():
                return ModelError(f"The provider of {self._handle} cannot be called.")
            case _:
                failure = ModelError(
                    f"The answer of {self._handle} broke off: the provider sent an event that "
                    "cannot be read."
                )
                failure.may_pass = True
                return failure

    def within_answer(self, code: str | None, message: str | None) -> EngineError:
        """Return the error for one that the provider reported instead of the rest."""
        status = _PASSING_CODES.get(code or "", 400)
        return self._refused(Refusal(status, code, message or code))

    def broken_off(self, content_type: str | None) -> EngineError:
        """Return the error for a stream that ended without an end event."""
        body = Body()
        body.content_type = content_type
        failure = broken_off(body, self._handle)
        failure.may_pass = (content_type or "").startswith("text/event-stream")
        return failure

    def withheld(self, reason: str, words: str = "", *, has_text: bool) -> EngineError:
        """Return the error for an answer that a filter or the model itself withheld."""
        rest = "the rest of its answer" if has_text else "the answer"
        more = f" It says: {words[:MAX_ERROR_CHARS]}" if words else ""
        return ModelError(f"The provider of {self._handle} withheld {rest}: {reason}.{more}")

    def ended_early(self, reason: str) -> EngineError:
        return ended_early(self._handle, reason)

    def empty(self) -> EngineError:
        return ended_empty(self._handle)

    def gone(self) -> EngineError:
        """Return the error for an answer that the provider no longer keeps."""
        return ModelError(
            f"The provider of {self._handle} no longer keeps the answer. The part that arrived is "
            "kept; send the message again, with a new OTID, to continue."
        )

    def differs(self) -> EngineError:
        """Return the error for a kept answer that does not begin with what was shown of it."""
        return ModelError(
            f"The answer that the provider of {self._handle} keeps differs from the part that "
            "arrived, so it cannot be continued. Send the message again, with a new OTID."
        )

    @property
    def _handle(self) -> str:
        return self.turn.model

    def _refused(self, refusal: Refusal) -> EngineError:
        failure = refusal_error(refusal, self.turn, base_url=self.base_url, secrets=self.secrets)
        if not failure.may_pass:
            failure.retry_after_seconds = refusal.retry_after_seconds
        return failure

    def _retry_after(self, error: openai.APIStatusError) -> float | None:
        """Return the seconds that the provider asked to wait, given as a number or a date."""
        headers = error.response.headers
        for name, unit_seconds in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
            try:
                seconds = float(headers[name]) * unit_seconds
            except (KeyError, ValueError):
                continue
            return seconds if 0 <= seconds < float("inf") else None
        try:
            moment = email.utils.parsedate_to_datetime(headers["retry-after"])
            return max((moment - self.clock.now()).total_seconds(), 0.0)
        except (KeyError, TypeError, ValueError):  # A date without a zone is no valid one.
            return None
