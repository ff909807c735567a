"""The facts of a response that its access log line and its span need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.types import Message, Scope

from reattach.records.base import Target

FOLLOWED: Final = "reattach.followed"
"""Key of the ASGI scope under which a stream stores, before its head, the ``Target`` that it
follows, or the ids of several runs."""

ASKED_CURSOR: Final = "reattach.asked_cursor"
"""Key of the ASGI scope under which a resume stores the cursor that its client named."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a response, as far as logs and traces need it."""

    status: int
    run_ids: Sequence[str]
    cursor: int | None
    """The cursor that the client named; else the seq that the stream begins after."""
    traceparents: Sequence[str]


def head_of(message: Message, scope: Scope) -> Head:
    """Return the facts of the message that starts a response."""
    status: int = message["status"]
    run_ids: Sequence[str] = ()
    cursor: int | None = None
    for name, value in message.get("headers", ()):
        if name == b"x-run-id":
            run_ids = (value.decode("latin-1"),)
        elif name == b"x-stream-starts-after":
            cursor = int(value)
    cursor = scope.get(ASKED_CURSOR, cursor)
    followed: Target | Sequence[str] = scope.get(FOLLOWED, run_ids)
    if isinstance(followed, Target):
        traceparents = () if followed.traceparent is None else (followed.traceparent,)
        return Head(status, (followed.run_id,), cursor, traceparents)
    return Head(status, followed, cursor, ())


def path_for_logs(scope: Scope) -> str:
    """Return the path as received, percent-encoded, without the query, which may have secrets."""
    path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    return path.partition(b"?")[0].decode("ascii", "backslashreplace")
