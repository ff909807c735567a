"""Refusals and failures, as clients raise them."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from reattach.client.json import object_of
from reattach.domain.errors import (
    ConflictError,
    ExpiredError,
    NotFoundError,
    ReattachError,
    UnauthorizedError,
)
from reattach.domain.limits import MAX_ERROR_CHARS

_NO_ROUTE: Final = "Not Found"
"""The detail of a 404 for an unknown path, as most web frameworks send or begin it."""

_KINDS: Final[Mapping[int, type[ReattachError]]] = {
    401: UnauthorizedError,
    404: NotFoundError,
    409: ConflictError,
    410: ExpiredError,
}

_PREFIX: Final = re.compile(r"\A(?:CONFLICT|EXPIRED|LOST): ")
"""The code before the text of a server's error, to which the class adds its own."""

_PASSING: Final = frozenset({408, 425, 429})
"""Statuses below 500 of a server that is busy, or of a proxy in front of it."""


class GaveUpError(ReattachError, TimeoutError):
    """The time for retries is over. The run may go on: follow it again."""

    code = "gave_up"

    def __init__(self, fact: str, *, remedy: str, since: datetime, cause: str, cursor: int) -> None:
        super().__init__(fact, remedy=remedy)
        self.since = since
        """When the last sign of life came, in UTC."""
        self.cause = cause
        """The cause of the last failure, in one line."""
        self.cursor = cursor
        """The seq of the last yielded event; 0 if there is none, and for several runs."""


class ClosedError(ReattachError):
    """The stream or its client was closed. The run goes on."""

    code = "closed"

    def __init__(self, closed: str = "stream") -> None:
        super().__init__(f"This {closed} was closed.", remedy="Follow the run with another one.")


class LostError(Exception):
    """A failure that may pass."""

    def __init__(
        self, cause: str | None = None, least_seconds: float = 0.0, *, was_refused: bool = False
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        """The cause in one line. None: connect again at once, without counting it as a failure."""
        self.least_seconds = least_seconds
        """The least wait before the next attempt."""
        self.was_refused = was_refused
        """Whether nothing listens at the server's address."""


class StoppedError(Exception):
    """A call from outside ended a step."""


def refusal(
    url: str,
    status: int,
    content: bytes,
    *,
    least_seconds: float,
    was_attached: bool,
) -> ReattachError | LostError:
    """Return the error for an answer that is not 200, in the server's own words if it sent any.

    ``least_seconds`` is the wait that the answer asks for. ``was_attached`` says whether the server
    itself has answered before. A proxy whose server is away answers with errors of its own, so an
    answer without a ``detail`` may then pass.
    """
    answer = object_of(content)
    is_ours = answer is not None and isinstance(answer.get("detail"), str)
    passes = status in _PASSING or (status > 499 and status != 501)
    if passes or (was_attached and not is_ours):
        return LostError(f"the server answered {status}", least_seconds)
    if answer is None or not is_ours:
        text = " ".join(content.decode("utf-8", "replace").split())
        answer = {"detail": text[:MAX_ERROR_CHARS] or "no further text"}
    return _error_of(url, status, answer)


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float:
    """Return the wait that a ``Retry-After`` asks for, in seconds or as a date; 0 without one."""
    text = headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    # A date that names no zone is one in UTC.
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max((aware - now).total_seconds(), 0.0)


def not_a_stream(url: str, media_type: str, *, was_attached: bool) -> ReattachError | LostError:
    """Return the error for an answer 200 that is no event stream.

    Once the server itself has answered, it is that of a captive portal, which passes.
    """
    answer = media_type or "no content type"
    if was_attached:
        return LostError(f"the answer was {answer} instead of an event stream")
    return ReattachError(
        f"{url} answered with {answer} instead of an event stream. Check that this is the URL of a "
        "Reattach server."
    )


def _error_of(url: str, status: int, answer: dict[str, object]) -> ReattachError:
    detail = str(answer.pop("detail"))
    kind = _KINDS.get(status, ReattachError)
    remedy = ""
    if status == 404 and detail.partition(":")[0] == _NO_ROUTE:
        fact = (
            f"{url} answered 404 {_NO_ROUTE}. Check the host, and the path under which Reattach is "
            "mounted."
        )
    elif status == 401:
        fact = f"The server requires a valid API key or token (401 {detail})."
        remedy = "Create a key on the server with `reattach keys create NAME`."
    elif kind is not ReattachError:
        fact = _PREFIX.sub("", detail)
    else:
        fact = f"The server answered {status}: {detail}"
        if answer.get("code") == "no_active_run" or "No active runs found" in detail:
            remedy = "The answer has ended: list the messages."
    # The classes of the server build their own text; here the server has sent it.
    error = kind.__new__(kind)
    ReattachError.__init__(error, fact, remedy=remedy)
    error.extra = answer
    error.status = status
    error.code = str(answer.get("code", error.code))
    return error
