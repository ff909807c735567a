"""The server that a command asks, named by its URL and an API key."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlencode

import typer

from reattach.cli.remote.answers import Server, check_answer
from reattach.domain.errors import ReattachError, UnauthorizedError, UnavailableError
from reattach.redact import without_secrets

if TYPE_CHECKING:
    from reattach.client import SyncClient

DEFAULT_URL: Final = "http://127.0.0.1:8283"

Url = Annotated[
    str,
    typer.Option(
        envvar="REATTACH_URL", help="URL of the server, with the path under which it is mounted."
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        "--key",
        envvar="REATTACH_API_KEY",
        show_envvar=True,
        help="API key for the server. Other users can see keys in flags: prefer the environment.",
    ),
]

_FORBIDDEN: Final = 403

_ANSWER_SECONDS: Final = 10.0
"""A person at a terminal waits no longer for an answer of which nothing comes."""

QueryValue = str | int | bool | None | Sequence[str]


class RemoteServer:
    """A server to which a command sends requests. Use it as a context manager."""

    def __init__(
        self, url: str, api_key: str | None, *, answer_seconds: float = _ANSWER_SECONDS
    ) -> None:
        self.url = url
        self.api_key = api_key
        self._answer_seconds = answer_seconds

    def get(self, path: str, shape: Any, /, **query: QueryValue) -> Any:
        """Return the JSON of a GET; members of the query that are None are left out.

        Raises as ``send`` does.
        """
        return self.send("GET", path_with(path, query), shape)

    def send(
        self, method: str, path: str, shape: Any, *, body: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the JSON of an answer, which has the members of ``shape``; None for an empty one.

        Raises:
            ReattachError: Its text says what to do: the server cannot be reached, or refuses, or
                another program answered.
        """
        try:
            answer = self._client.request(
                method, path, body=body, timeout_seconds=self._answer_seconds
            )
        except ReattachError as error:
            raise explained(error, self.url, self.api_key) from error.__cause__
        return check_answer(answer, shape, self.url)

    def require_reattach(self) -> None:
        """Raise ReattachError if another program answers at the URL, such as with empty lists."""
        try:
            self.get("/v1/server", Server)
        except ReattachError as error:
            if error.status != _FORBIDDEN:
                raise

    @cached_property
    def _client(self) -> "SyncClient":
        from reattach.client import SyncClient

        return SyncClient(self.url, api_key=self.api_key)


def path_with(path: str, query: Mapping[str, QueryValue]) -> str:
    """Return the path with a query, without the members that are None or empty."""
    members = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in query.items()
        if value is not None and value != ""
    }
    text = urlencode(members, doseq=True)
    return f"{path}?{text}" if text else path


def explained(error: ReattachError, url: str, api_key: str | None) -> ReattachError:
    """Return the error of a request with the next step for a person at a terminal.

    It keeps the status of the refusal.
    """
    better = _better(error, url, api_key)
    if better is None:
        return error
    better.status = error.status
    return better


def _better(error: ReattachError, url: str, api_key: str | None) -> ReattachError | None:
    """Return an error that says more than that of the client; None if there is no better one."""
    if isinstance(error, UnavailableError):
        loss = error.__cause__
        # A loss with a cause of its own is a failed connection, one without it a busy server.
        if loss is None or loss.__cause__ is None:
            return None
        return ReattachError(
            f"The server at {without_secrets(url)} cannot be reached: {loss}.",
            remedy="Start one with `reattach serve`, or name another one with --url or "
            "REATTACH_URL.",
        )
    if not isinstance(error, UnauthorizedError) or error.code == "key_required":
        return None
    if api_key is None:
        return ReattachError(
            f"The server at {without_secrets(url)} requires an API key, and none was given.",
            remedy="Create one on the server with `reattach keys create NAME`, and set "
            "REATTACH_API_KEY.",
        )
    return ReattachError(
        f"The server at {without_secrets(url)} refused the API key{_shown(api_key)}: it is not "
        "one of its keys, or was revoked, or has expired.",
        remedy="`reattach keys list` on the server shows its keys, and `reattach keys create "
        "NAME` creates one.",
    )


def _shown(api_key: str) -> str:
    """Return the first characters, as `reattach keys list` shows them, if it is a whole key.

    Anything else may be a password, or the rest of a key.
    """
    if not api_key.startswith("rk_") or len(api_key) < _LEAST_KEY_CHARS:
        return ""
    return f" {api_key[:_SHOWN_CHARS]}…"


_SHOWN_CHARS: Final = 8
_LEAST_KEY_CHARS: Final = 24


def with_server_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the flags that name a server, in place of its parameter ``server``."""
    flags = [
        Parameter("url", Parameter.KEYWORD_ONLY, default=DEFAULT_URL, annotation=Url),
        Parameter("api_key", Parameter.KEYWORD_ONLY, default=None, annotation=ApiKey),
    ]
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        parameters.extend(flags if parameter.name == "server" else [parameter])

    @wraps(command)
    def run(**given: Any) -> None:
        server = RemoteServer(given.pop("url"), given.pop("api_key"))
        command(server=server, **given)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return run
