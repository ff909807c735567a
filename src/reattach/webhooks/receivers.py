"""Requests to the receivers that clients name."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from reattach.domain.errors import UrlRefusedError, UrlUnreachableError
from reattach.domain.limits.outbound import CALLBACK_SECONDS, MAX_CALLBACK_URL_CHARS
from reattach.outbound.requests import NOT_PUBLIC, Outbound, Resolve, checked_url, resolve

logger = structlog.get_logger(__name__)

NO_ANSWER: Final = "no answer"
"""The only reason that clients get for a receiver without an HTTP response, because the difference
between closed, open and filtered ports would reveal a network. The log has the cause."""

NOT_CALLED: Final = f"not called: {NOT_PUBLIC}"


@dataclass(frozen=True, slots=True)
class CallbackResult:
    """The outcome of one callback."""

    status_code: int | None
    error: str | None
    """None after a 2xx."""
    is_final: bool
    """Whether another attempt would be useless."""


def receiver_url(text: str, *, to_private: bool) -> str:
    """Return the normalized URL if its text allows a callback to it.

    Raises:
        UrlRefusedError: The URL is too long, malformed, or names an address that is not allowed.
    """
    if len(text) > MAX_CALLBACK_URL_CHARS:
        raise UrlRefusedError(f"It may have at most {MAX_CALLBACK_URL_CHARS} characters.")
    return str(checked_url(text, to_private=to_private))


class Receivers:
    """Posts to clients' URLs, and reads nothing of a response but its status."""

    def __init__(
        self,
        *,
        to_private: bool,
        resolve: Resolve = resolve,
        timeout_seconds: float = CALLBACK_SECONDS,
    ) -> None:
        self._outbound = Outbound(to_private=to_private, resolve=resolve)
        self._timeout_seconds = timeout_seconds

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> CallbackResult:
        """Post the body within the timeout. Failures are returned, not raised."""
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                self._outbound.stream("POST", url, content=body, headers=headers) as response,
            ):
                status = response.status_code
        except UrlRefusedError:
            return CallbackResult(None, NOT_CALLED, is_final=False)
        except TimeoutError:
            logger.info("receiver took too long", seconds=self._timeout_seconds)
            return CallbackResult(None, NO_ANSWER, is_final=False)
        except UrlUnreachableError as error:
            logger.info("receiver did not answer", reason=error.detail)
            return CallbackResult(None, NO_ANSWER, is_final=False)
        if 200 <= status < 300:
            return CallbackResult(status, None, is_final=True)
        text = f"answered {status}"
        if 300 <= status < 400:
            text += ", and redirects are not followed"
        return CallbackResult(status, text, is_final=status == 410)
