"""The members of a server's answers that commands use, and the check that they are there.

The answer may come from another program on the same port, or from another version of the server.
"""

from datetime import datetime
from typing import Any, TypedDict

from reattach.domain.errors import ReattachError
from reattach.redact import without_secrets


class _RunError(TypedDict):
    error_type: str
    message: str
    detail: str | None


class Run(TypedDict):
    id: str
    status: str
    stop_reason: str | None
    tenant: str | None
    agent_id: str | None
    agent_name: str | None
    conversation_id: str | None
    model: str | None
    background: bool
    created_at: datetime
    completed_at: datetime | None
    cancel_requested_at: datetime | None
    first_event_seconds: float | None
    events: int | None
    events_per_second: float | None
    bytes: int | None
    attempts: int
    readers: int
    owner: str | None
    worker: int | None
    input_preview: str | None
    error: _RunError | None


class RunPage(TypedDict):
    items: list[Run]
    active: int
    has_more: bool


class _Attempt(TypedDict):
    number: int
    way: str | None
    owner: str | None
    token: int | None
    began_at: datetime | None
    ended_at: datetime | None
    after_seq: int | None
    first_seq: int | None
    interruption: str | None


class _Step(TypedDict):
    id: str
    model: str | None
    began_at: datetime | None
    ended_at: datetime | None
    usage: dict[str, Any] | None


class _Call(TypedDict):
    id: str
    name: str
    status: str | None
    began_seq: int | None
    ended_seq: int | None
    began_at: datetime | None
    ended_at: datetime | None


class _Reader(TypedDict):
    process: str | None
    client: str | None
    transport: str
    cursor: int | None
    lag_events: int | None
    since: datetime


class _CutOff(TypedDict):
    at: datetime
    reason: str
    process: str | None
    client: str | None
    transport: str
    cursor: int | None


class RunDetails(Run):
    first_seq: int | None
    last_seq: int | None
    log: str
    log_deleted_at: datetime | None
    attempt_list: list[_Attempt]
    steps: list[_Step]
    tool_calls: list[_Call]
    readers_list: list[_Reader]
    cut_offs: list[_CutOff]
    usage: dict[str, Any] | None


class Frames(TypedDict):
    first_seq: int
    last_seq: int


class _Lease(TypedDict):
    seconds: float
    margin_seconds: float | None


class _Operation(TypedDict):
    p99_seconds: float | None


class _Store(TypedDict):
    store: str
    operations: list[_Operation]


class _Process(TypedDict):
    id: str
    host: str | None
    pid: int | None
    worker: int | None
    version: str | None
    started_at: datetime
    draining: bool
    open_runs: int
    readers: int
    connections: int | None
    memory_bytes: int | None
    event_loop_lag_seconds: float | None
    lease: _Lease | None
    stores: list[_Store] | None


class ProcessPage(TypedDict):
    items: list[_Process]


class StreamToken(TypedDict):
    id: str
    run_id: str | None
    conversation_id: str | None
    scope: list[str]
    origin: str | None
    key_id: str | None
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    uses: int


class IssuedToken(TypedDict):
    id: str
    token: str
    scope: list[str]
    expires_at: datetime


class Revoked(TypedDict):
    revoked: int


class Server(TypedDict):
    version: str
    tenant: str


def check_answer(answer: Any, shape: Any, url: str) -> Any:
    """Return the answer unchanged if it has the members of ``shape``, and may have others.

    Raises:
        ReattachError: It has not; the URL is that of another program, or of another version.
    """
    import msgspec

    try:
        msgspec.convert(answer, shape)
    except msgspec.ValidationError as error:
        raise ReattachError(
            f"{without_secrets(url)} did not answer as a Reattach server of this version does: "
            f"{error}.",
            remedy="Check that this is the URL of a Reattach server, with the path under which it "
            "is mounted, and that `reattach --version` is the same there.",
        ) from None
    return answer
