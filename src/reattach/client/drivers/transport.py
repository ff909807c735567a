"""Requests over httpx2, and its failures in the words of the client. Both drivers use it."""

import re
import ssl
from typing import Any, Final, TypeVar
from urllib.request import getproxies

import httpx2

from reattach import __version__
from reattach.client.errors import LostError
from reattach.client.json import object_of
from reattach.client.steps import Answer, Open, Request
from reattach.domain.errors import ReattachError
from reattach.domain.limits import MAX_ERROR_CHARS
from reattach.redact import without_secrets

E = TypeVar("E", bound=BaseException)

_CONNECT_SECONDS: Final = 5.0

HEADERS: Final = {"user-agent": f"reattach-python/{__version__}"}
"""Operators see this name among the readers of a run. An application's ``http`` has its own."""

LIMITS: Final = httpx2.Limits(max_connections=None, max_keepalive_connections=10)
"""Every stream needs a connection of its own for as long as it lasts."""


def checked_url(base_url: str) -> str:
    """Return the URL without a slash, ``/v1`` or a fragment at its end, or raise ReattachError.

    Browsers show the address of the page with a fragment.
    """
    shown = without_secrets(base_url)[:MAX_ERROR_CHARS]
    base_url = base_url.partition("#")[0]
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
            f"'{shown}' is not the URL of a server.",
            remedy="Write it with its scheme, such as http://localhost:8283.",
        )
    if "?" in base_url:
        raise ReattachError(
            f"The URL {shown} has a query.",
            remedy="Leave it out: the URL of a server ends with its port or a path.",
        )
    return base_url.rstrip("/").removesuffix("/v1")


def needs_certificates(url: str) -> bool:
    """Whether any connection may use TLS. Otherwise their trusted issuers need not be read.

    That takes 50 ms of CPU. A proxy that the environment names may use TLS before any server.
    """
    return httpx2.URL(url).scheme == "https" or bool(getproxies())


def stream_request(
    http: httpx2.Client | httpx2.AsyncClient, url: str, step: Open
) -> httpx2.Request:
    """Build a request whose response is read in pieces."""
    connect_seconds = min(_CONNECT_SECONDS, step.silence_seconds)
    timeout = httpx2.Timeout(step.silence_seconds, connect=connect_seconds, pool=None)
    # A proxy that compresses a stream withholds its events.
    return _build(http, url, step.request, timeout, {"accept-encoding": "identity"})


def look_request(
    http: httpx2.Client | httpx2.AsyncClient, url: str, request: Request, seconds: float
) -> httpx2.Request:
    """Build a request each step of which takes at most ``seconds``."""
    return _build(http, url, request, httpx2.Timeout(seconds), {})


def _build(
    http: httpx2.Client | httpx2.AsyncClient,
    url: str,
    request: Request,
    timeout: httpx2.Timeout,
    headers: dict[str, str],
) -> httpx2.Request:
    if request.token is not None:
        headers["authorization"] = f"Bearer {request.token}"
    address = url + request.path
    return http.build_request(
        request.method, address, json=request.body, headers=headers, timeout=timeout
    )


def answer_of(response: httpx2.Response) -> Answer:
    return Answer(response.status_code, {k.lower(): v for k, v in response.headers.items()})


def look_of(response: httpx2.Response) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON object of a response; ``{}`` for another body."""
    return response.status_code, object_of(response.content) or {}


def failure_of(error: httpx2.RequestError, url: str) -> LostError | ReattachError:
    """Return the error for a failed request: ReattachError for a TLS fault that no retry mends."""
    url = without_secrets(url)
    fault = _underlying(error, ssl.SSLError)
    if isinstance(fault, ssl.SSLCertVerificationError):
        return ReattachError(
            f"The certificate of {url} is not trusted: {fault.verify_message}. "
            "Set the environment variable SSL_CERT_FILE to the certificate of its authority."
        )
    if fault is not None and fault.reason == "WRONG_VERSION_NUMBER":
        return ReattachError(f"The server at {url} does not speak TLS. Use an http:// URL.")
    was_refused = _underlying(error, ConnectionRefusedError) is not None
    return LostError(_cause(error, was_refused=was_refused), was_refused=was_refused)


def _cause(error: httpx2.RequestError, *, was_refused: bool) -> str:
    """Return the cause of a failed connection in one line; httpx2's timeouts have no text."""
    if isinstance(error, httpx2.ConnectTimeout):
        return "the server does not accept the connection"
    if isinstance(error, httpx2.TimeoutException):
        return "the connection fell silent"
    if was_refused:
        return "connection refused"
    return " ".join(str(error).split()) or type(error).__name__


def _underlying(error: BaseException, kind: type[E]) -> E | None:
    """Return the error of that kind among the causes of ``error``."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__ or cause.__context__
    return cause
