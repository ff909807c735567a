"""Everything of a tenant as JSON Lines.

Each page of rows is of one moment, and runs come before messages and events. So a run that is
exported as ended has all its messages and, while its log is kept, all its events. Rows that are
created or deleted during the export may be missing.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Final

import msgspec

from reattach import __version__
from reattach.domain.errors import ExpiredError, LogLostError, LogNotFoundError
from reattach.domain.errors.stores import LogDamagedError
from reattach.domain.ids import RunId, Seq, TenantId
from reattach.log.base import Log
from reattach.records.audit_log import Action
from reattach.records.base import Actor
from reattach.records.database import schema
from reattach.records.records import Records
from reattach.records.tenants.tables import EXPORTED
from reattach.server.tenants.deletion import nothing_of
from reattach.wire.sse import split_frames

FORMAT: Final = 1
"""Increased when a line changes so that a reader of the format before would misread it."""

_SLICE_BYTES: Final = 1 << 20
_SLICE_EVENTS: Final = 1000

Write = Callable[[bytes], object]


async def export_tenant(
    records: Records,
    open_log: Callable[[], AbstractAsyncContextManager[Log]],
    tenant: TenantId,
    write: Write,
    *,
    by: Actor,
    now: datetime,
) -> Mapping[str, int]:
    """Write the lines of the export, and return the number of lines of each type.

    At most a page of rows or a slice of a log is in memory. ``open_log`` is called once the runs
    are written, so that the log has the events of all that had ended.

    Raises:
        NotFoundError: Nothing of such a tenant exists.
        StoreUnavailableError: A store does not answer; what is written so far has no last line.
    """
    if not await records.tenants.remaining(tenant):
        raise nothing_of(tenant)
    await records.audit_log.add(by, Action.TENANT_EXPORTED, tenant=tenant, subject=tenant)
    export = _Export(write)
    export.line("export", format=FORMAT, version=__version__, tenant=tenant, exported_at=now)
    last_run = 0
    for table in EXPORTED:
        after: int | None = 0
        while after is not None:
            page = await records.tenants.export_page(table, tenant, after)
            for kind, members in page.lines:
                export.line(kind, **members)
            await export.flush()
            after = page.next_after
            if table is schema.runs:
                last_run = after or last_run
    async with open_log() as log:
        await _export_logs(records, log, tenant, last_run, export)
    counts = dict(export.counts)
    export.line("end", lines=counts)
    await export.flush()
    return counts


class _Export:
    """Counts lines, and writes them together."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._lines: list[bytes] = []
        self.counts: Counter[str] = Counter()

    def line(self, kind: str, **members: Any) -> None:
        self.counts[kind] += 1
        self._lines.append(msgspec.json.encode({"type": kind} | members))

    async def flush(self) -> None:
        """Write the lines, in a thread because files and pipes may block."""
        lines, self._lines = self._lines, []
        if lines:
            await asyncio.to_thread(self._write, b"\n".join([*lines, b""]))


async def _export_logs(
    records: Records, log: Log, tenant: TenantId, last_run: int, export: _Export
) -> None:
    after: int | None = 0
    while after is not None:
        run_ids, after = await records.tenants.runs_with_logs(tenant, after, last_run)
        for run_id in run_ids:
            try:
                await _export_log(log, run_id, export)
            except (LogNotFoundError, LogLostError, LogDamagedError, ExpiredError) as error:
                export.line("log_ends_early", run_id=run_id, reason=error.fact)
        await export.flush()


async def _export_log(log: Log, run_id: RunId, export: _Export) -> None:
    head = await log.head(run_id)
    export.line(
        "log",
        run_id=run_id,
        first_seq=head.first_seq,
        last_seq=head.last_seq,
        closed=head.closed,
    )
    seq = Seq(head.first_seq - 1)
    while seq < head.last_seq:
        piece = await log.read(run_id, seq, max_bytes=_SLICE_BYTES, max_events=_SLICE_EVENTS)
        frames = split_frames(piece.frames)
        if not frames:
            return
        for frame in frames:
            seq = Seq(seq + 1)
            text = frame.decode(errors="replace")
            export.line("event", run_id=run_id, seq=seq, frame=text)
        await export.flush()
