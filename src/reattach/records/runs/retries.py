"""Requests in other dialects: sent again without a key that says so, and at last forgotten."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, exists, select, update

from reattach.domain.ids import RunId, TenantId
from reattach.records.base import Run
from reattach.records.database import schema
from reattach.records.repository import Repository
from reattach.records.runs.admission import one_run

_runs, _otids = schema.runs, schema.run_otids
_NEWEST: Final = (
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


class Retries(Repository):
    """Finds runs by a digest of the request, which is one of their OTIDs."""

    async def newest(self, tenant: TenantId, digest: str, since: datetime) -> Run | None:
        """Return the newest run since then whose request had this digest."""

        def read(connection: Connection) -> Run | None:
            return one_run(
                connection,
                _NEWEST,
                tenant=tenant,
                digest=digest,
                since=since,
            )

        return await self._database.in_read(read)


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
