"""The facts of a response that its access log line and its span need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.types import Message, Scope

FOLLOWED: Final = "reattach.followed"
"""Key of the ASGI scope under which a stream stores the ``Followed`` runs before its head."""


@dataclass(frozen=True, slots=True)
class Followed:
    """The runs that a response streams."""

    run_ids: Sequence[str]
    traceparents: Sequence[str] = ()
    """The trace contexts of those that have one."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a response, as far as logs and traces need it."""

    status: int
    run_ids: Sequence[str]
    cursor: int | None
    """The seq that the stream begins after."""
    traceparents: Sequence[str]


def head_of(message: Message, scope: Scope) -> Head:
    """Return the facts of the message that starts a response."""
    run_id: str | None = None
    cursor: int | None = None
    for name, value in message.get("headers", ()):
        if name == b"x-run-id":
            run_id = value.decode("latin-1")
        elif name == b"x-stream-starts-after":
            cursor = int(value)
    followed: Followed | None = scope.get(FOLLOWED)
    if followed is not None:
        return Head(message["status"], followed.run_ids, cursor, followed.traceparents)
    return Head(message["status"], () if run_id is None else (run_id,), cursor, ())


def path_for_logs(scope: Scope) -> str:
    """Return the path as received, percent-encoded, without the query, which may have secrets."""
    path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    return path.partition(b"?")[0].decode("ascii", "backslashreplace")
