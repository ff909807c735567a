"""Requests in other dialects: sent again without a key that says so, and at last forgotten."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import BigInteger, Connection, bindparam, exists, func, select, update

from reattach.domain.ids import RunId, TenantId
from reattach.records.database import schema
from reattach.records.database.prepared import PreparedStatement, Query, Row, Steps

_runs, _otids = schema.runs, schema.run_otids
_NEWEST: Final = PreparedStatement(
    select(_runs)
    .join(_otids, _otids.c.run_id == _runs.c.id)
    .where(
        _otids.c.tenant == bindparam("tenant"),
        _otids.c.otid == bindparam("digest"),
        _runs.c.created_at >= bindparam("since"),
    )
    .order_by(_runs.c.created_at.desc(), _runs.c.ordinal.desc())
    .limit(1)
)
_key: Final = bindparam("key", type_=BigInteger)
_LOCK_SHARED: Final = PreparedStatement(select(func.pg_advisory_xact_lock_shared(_key)))
_LOCK_EXCLUSIVE: Final = PreparedStatement(select(func.pg_advisory_xact_lock(_key)))
_OVERTAKEN: Final = timedelta(seconds=5)
"""How much later than its repetition a first attempt may come; the SDKs wait for 0.5 to 8 s."""

_RETRY: Final = ":retry"
"""The end of a second name of runs whose requests said that they repeat another one."""


@dataclass(frozen=True, slots=True)
class RequestDigest:
    """The content of a request without a key, by which a repetition of it is found."""

    name: str
    """An OTID of the run: the same for all requests with this content."""
    since: datetime | None = None
    """The earliest creation of the run that it may repeat; None: it does not say that it repeats
    one."""


def newest(connection: Connection, tenant: TenantId, name: str, since: datetime) -> Row | None:
    """Return the row of the newest run since then whose request had this digest."""
    return _NEWEST.first(connection, {"tenant": tenant, "digest": name, "since": since})


def find_repeated(
    connection: Connection, tenant: TenantId, digest: RequestDigest, created_at: datetime
) -> Steps[Row | None]:
    """Return the row of the run that a request repeats; ``created_at`` is when it came.

    A repetition waits until equal requests that are being admitted have their runs. If it overtook
    the first attempt, that one gets its run while it is active.
    """
    name, since = digest.name, digest.since
    if since is None:
        name, since = name + _RETRY, created_at - _OVERTAKEN
    wanted = {"tenant": tenant, "digest": name, "since": since}
    *_, rows = yield [*_locking(connection, tenant, digest), (_NEWEST, wanted)]
    row = _NEWEST.named(connection, rows)[0] if rows else None
    if digest.since is not None:
        return row
    if row is None or row["created_at"] >= created_at or row["status"].is_active:
        return row
    return None


def names_of(digest: RequestDigest) -> list[str]:
    """Return the OTIDs by which ``find_repeated`` finds the run of a request."""
    return [digest.name] if digest.since is None else [digest.name, digest.name + _RETRY]


def _locking(connection: Connection, tenant: TenantId, digest: RequestDigest) -> list[Query]:
    """Return what keeps repetitions apart from equal requests until the transaction ends.

    Equal requests that repeat nothing do not wait for each other. SQLite has one writer anyway.
    """
    if connection.dialect.name != "postgresql":
        return []
    name = hashlib.sha256(f"{tenant} {digest.name}".encode()).digest()
    key = int.from_bytes(name[:8], "big", signed=True)
    return [(_LOCK_EXCLUSIVE if digest.since is not None else _LOCK_SHARED, {"key": key})]


def forget_requests(connection: Connection, run_ids: Sequence[RunId]) -> None:
    """Forget the requests of runs without logs, if their conversations were deleted.

    Until then the frames of such a run repeat members of its request.
    """
    conversations = schema.conversations
    of_deleted = exists().where(
        conversations.c.id == _runs.c.conversation_id, conversations.c.deleted_at.is_not(None)
    )
    forgotten = update(_runs).where(_runs.c.id.in_(run_ids), of_deleted)
    connection.execute(forgotten.values(request_extras=None))
