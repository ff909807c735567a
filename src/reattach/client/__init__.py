"""A client that reconnects by itself and yields the events of a run exactly once, in order.

The official SDKs work with Reattach unmodified but leave reconnecting to their caller. This client
reconnects; ``reattach attach`` uses it.
"""

import asyncio
import json
import re
import ssl
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx2

from reattach.client.takeovers import Takeover, Takeovers
from reattach.domain.backoff import Backoff
from reattach.domain.errors import ConflictError, ExpiredError, NotFoundError, ReattachError
from reattach.domain.limits import MAX_ERROR_CHARS

__all__ = [
    "Client",
    "ConflictError",
    "Event",
    "ExpiredError",
    "NotFoundError",
    "ReattachError",
    "Retry",
    "Takeover",
]

E = TypeVar("E", bound=BaseException)

Event = Mapping[str, Any]
"""An event as sent by the server; ``message_type`` is its kind."""

_READ_SECONDS: Final = 60.0
"""Silence after which a connection counts as dead; the server pings every 15 s."""

_CONNECT_SECONDS: Final = 5.0
_FIRST_DELAY_SECONDS: Final = 0.1
_LAST_DELAY_SECONDS: Final = 5.0
_TRANSIENT_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses of a server that is busy, starting or stopping, or of a proxy that cannot reach one."""

_NO_ROUTE: Final = "Not Found"
"""The detail of a 404 for an unknown path, as most web frameworks send or begin it."""

_REFUSALS: Final[Mapping[int, type[ReattachError]]] = {
    404: NotFoundError,
    409: ConflictError,
    410: ExpiredError,
}


@dataclass(frozen=True, slots=True)
class Retry:
    """A failed connection that is about to be retried."""

    cause: str
    """The cause of the failure, in one line."""

    cursor: int
    """The seq of the last yielded event; 0 if there is none."""

    delay_seconds: float
    """The wait before the next attempt."""

    remaining_seconds: float
    """How long the client keeps retrying before it gives up."""


@dataclass
class _Position:
    """The position of a reader: the run, and the seq of the last yielded event."""

    body: dict[str, Any]
    path: str
    cursor: int = 0
    run_id: str | None = None
    ended: bool = False

    def next_request(self) -> tuple[str, dict[str, Any]]:
        """Resume the run if it is known; until then repeat the request that names it."""
        if self.run_id is None:
            return self.path, self.body
        return f"/v1/runs/{self.run_id}/stream", {"starting_after": self.cursor}


class _RetryBudget:
    """How long a reader without progress keeps retrying, and at which intervals."""

    def __init__(self, seconds: float, on_retry: Callable[[Retry], None] | None) -> None:
        self._seconds = seconds
        self._on_retry = on_retry
        self._backoff = Backoff(_FIRST_DELAY_SECONDS, _LAST_DELAY_SECONDS)
        self.restore()

    def restore(self) -> None:
        self._deadline = asyncio.get_running_loop().time() + self._seconds
        self._backoff.reset()

    async def wait(self, cursor: int, error: httpx2.TransportError) -> None:
        """Wait before the next attempt. Raises TimeoutError when no time is left for one."""
        remaining_seconds = self._deadline - asyncio.get_running_loop().time()
        delay_seconds = self._backoff.next_seconds()
        if isinstance(error, _UnavailableError):
            delay_seconds = max(delay_seconds, error.retry_after_seconds)
        cause = _cause(error)
        if delay_seconds > remaining_seconds:
            raise TimeoutError(
                f"No event arrived for {self._seconds:g} s; last cause: {cause}. "
                f"Resume later with starting_after={cursor}."
            ) from error
        if self._on_retry is not None:
            self._on_retry(Retry(cause, cursor, delay_seconds, remaining_seconds))
        await asyncio.sleep(delay_seconds)


class Client:
    """Sends messages and follows runs. Use it as an async context manager.

    ``retry_seconds`` bounds how long it retries while the server is unreachable or unavailable;
    every event restarts that time. ``on_retry`` is called before each wait, and ``on_attached``
    with the run's id whenever a stream is open. ``on_takeover`` is called when the connection was
    lost and the run goes on in another server process, before the first event from there; a lost
    connection alone is none. For it, the client reads the run when it attaches, and up to three
    times after a lost connection. Raises ReattachError if ``base_url`` is not an http or https URL
    with a host.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        retry_seconds: float = 120.0,
        on_retry: Callable[[Retry], None] | None = None,
        on_attached: Callable[[str | None], None] | None = None,
        on_takeover: Callable[[Takeover], None] | None = None,
    ) -> None:
        self._base_url = _checked_url(base_url)
        self._headers = {} if api_key is None else _headers_of(api_key)
        self._retry_seconds = retry_seconds
        self._on_retry = on_retry
        self._on_attached = on_attached
        self._on_takeover = on_takeover
        self._http: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> "Client":
        self._http = await asyncio.to_thread(self._connect)
        return self

    def _connect(self) -> httpx2.AsyncClient:
        """Make the connection pool; this reads certificates, so it must not run on the loop."""
        timeout = httpx2.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
        return httpx2.AsyncClient(base_url=self._base_url, headers=self._headers, timeout=timeout)

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    def send(
        self, conversation_id: str, text: str, *, otid: str | None = None
    ) -> AsyncGenerator[Event]:
        """Send a message in the background and yield the events of its run, each once, in order.

        The message carries an OTID, made here if none is given, so the message starts exactly one
        run however often the connection breaks. Raises as ``follow`` does.
        """
        message = {"role": "user", "content": text, "otid": otid or str(uuid.uuid4())}
        body = {"messages": [message], "background": True, "stream_tokens": True}
        return self._events(_Position(body, f"/v1/conversations/{conversation_id}/messages"))

    def follow(
        self,
        conversation_id: str = "default",
        *,
        run_id: str | None = None,
        otid: str | None = None,
        agent_id: str | None = None,
        starting_after: int = 0,
    ) -> AsyncGenerator[Event]:
        """Yield the events of a run after a cursor, each once, in order, until its end.

        Without ``run_id`` and ``otid`` it follows the active run of the conversation.

        Raises:
            NotFoundError, ConflictError, ExpiredError: As the server answered; ``extra`` holds
                the further members of its error.
            ReattachError: The server refused for another reason, or is not a Reattach server, or
                no trusted TLS connection to it is possible.
            TimeoutError: ``retry_seconds`` passed without an event.
        """
        named = {"run_id": run_id, "otid": otid, "agent_id": agent_id}
        body: dict[str, Any] = {name: one for name, one in named.items() if one is not None}
        path = f"/v1/conversations/{conversation_id}/stream"
        body["starting_after"] = starting_after
        return self._events(_Position(body, path, cursor=starting_after))

    async def _events(self, position: _Position) -> AsyncGenerator[Event]:
        retries = _RetryBudget(self._retry_seconds, self._on_retry)
        takeovers = None
        if self._http is not None and self._on_takeover is not None:
            takeovers = Takeovers(self._http, self._on_takeover)
        while not position.ended:
            try:
                async with aclosing(self._connection(position, takeovers)) as events:
                    async for event in events:
                        retries.restore()
                        yield event
            except httpx2.TransportError as error:
                self._raise_if_permanent(error)
                if takeovers is not None:
                    takeovers.note_loss(position.cursor, was_refused=_is_refusal(error))
                await retries.wait(position.cursor, error)

    def _raise_if_permanent(self, error: httpx2.TransportError) -> None:
        """Raise ReattachError for a TLS failure that no retry can fix."""
        failure = _underlying(error, ssl.SSLError)
        if isinstance(failure, ssl.SSLCertVerificationError):
            raise ReattachError(
                f"The certificate of {self._base_url} is not trusted: {failure.verify_message}. "
                "Set the environment variable SSL_CERT_FILE to the certificate of its authority."
            ) from error
        if failure is not None and failure.reason == "WRONG_VERSION_NUMBER":
            raise ReattachError(
                f"The server at {self._base_url} does not speak TLS. Use an http:// URL."
            ) from error

    async def _connection(
        self, position: _Position, takeovers: Takeovers | None
    ) -> AsyncGenerator[Event]:
        """Yield the new events of one connection.

        Raises TransportError when the connection breaks or its body ends before the answer does.
        """
        if self._http is None:
            raise ReattachError(
                "This Client is not open.",
                remedy="Use it as an async context manager: `async with client:`.",
            )
        path, body = position.next_request()
        async with self._http.stream("POST", path, json=body) as response:
            if response.status_code in _TRANSIENT_STATUSES:
                raise _UnavailableError(response)
            if response.status_code != 200:
                raise self._refusal(response.status_code, await response.aread())
            media_type = response.headers.get("content-type", "")
            if not media_type.startswith("text/event-stream"):
                raise ReattachError(
                    f"{self._base_url} answered with {media_type or 'no content type'} instead of "
                    "an event stream. Check that this is the URL of a Reattach server."
                )
            position.run_id = response.headers.get("x-run-id", position.run_id)
            if self._on_attached is not None:
                self._on_attached(position.run_id)
            if takeovers is not None and position.run_id is not None:
                await takeovers.open(position.run_id)
            async for sent in httpx2.EventSource(response, max_event_size=None):
                if sent.data == "[DONE]":
                    position.ended = True
                    return
                event = sent.json()
                assert isinstance(event, dict)
                seq = event.get("seq_id")
                if isinstance(seq, int) and seq > position.cursor:
                    if takeovers is not None:
                        await takeovers.see(event)
                    position.cursor = seq
                    yield event
        raise httpx2.RemoteProtocolError("the stream ended before the answer did")

    def _refusal(self, status: int, body: bytes) -> ReattachError:
        """Return the error for a refused request, in the server's own words if it sent any."""
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("detail"), str):
            text = " ".join(body.decode("utf-8", "replace").split())
            answer = {"detail": text[:MAX_ERROR_CHARS] or "no further text"}
        detail = answer.pop("detail")
        kind = _REFUSALS.get(status)
        if status == 404 and detail.partition(":")[0] == _NO_ROUTE:
            error: ReattachError = NotFoundError(
                f"{self._base_url} answered 404 {_NO_ROUTE}. Check the host, and the path under "
                "which Reattach is mounted."
            )
        elif kind is not None:
            error = kind(detail.removeprefix("CONFLICT: ").removeprefix("EXPIRED: "))
        elif status == 401:
            error = ReattachError(
                f"The server requires a valid API key (401 {detail}).",
                remedy="Create one on the server with `reattach keys create NAME`.",
            )
        else:
            ended = "No active runs found" in detail
            remedy = "The answer has ended: list the messages." if ended else ""
            error = ReattachError(f"The server answered {status}: {detail}", remedy=remedy)
        error.extra = answer
        return error


class _UnavailableError(httpx2.TransportError):
    """The server, or a proxy in front of it, is temporarily unavailable."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__(f"the server answered {response.status_code}")
        seconds = response.headers.get("retry-after", "")
        self.retry_after_seconds = float(seconds) if seconds.isdecimal() else 0.0


def _checked_url(base_url: str) -> str:
    try:
        url = httpx2.URL(base_url)
        valid = (
            url.scheme in {"http", "https"}
            and bool(url.host)
            and not re.search(r"[\s%]", url.host)
            and 0 < (url.port or 80) < 65536
        )
    except httpx2.InvalidURL:
        valid = False
    if not valid:
        raise ReattachError(
            f"'{base_url[:MAX_ERROR_CHARS]}' is not the URL of a server.",
            remedy="Write it with its scheme, such as http://localhost:8283.",
        )
    return base_url.rstrip("/").removesuffix("/v1")


def _headers_of(api_key: str) -> dict[str, str]:
    """Return the headers for the key, or raise ReattachError, which does not show it."""
    if re.fullmatch(r"[!-~]+", api_key) is None:
        fault = "has a character that no key has, such as a space or a line end"
        raise ReattachError(
            f"The API key {fault if api_key else 'is empty'}.",
            remedy="Copy it again; `reattach keys create NAME` prints a new one.",
        )
    return {"authorization": f"Bearer {api_key}"}


def _cause(error: httpx2.TransportError) -> str:
    """Return the cause of a failed connection in one line; httpx2's timeouts have no text."""
    if isinstance(error, httpx2.ConnectTimeout):
        return "the server does not accept the connection"
    if isinstance(error, httpx2.TimeoutException):
        return "the connection fell silent"
    if _is_refusal(error):
        return "connection refused"
    return " ".join(str(error).split()) or type(error).__name__


def _is_refusal(error: httpx2.TransportError) -> bool:
    """Whether nothing listens at the server's address."""
    return _underlying(error, ConnectionRefusedError) is not None


def _underlying(error: BaseException, kind: type[E]) -> E | None:
    """Return the error of that kind among the causes of ``error``."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__ or cause.__context__
    return cause
