"""The report of one process, as other processes and operators get it."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from reattach.domain.ids import RunId, Seq, TenantId
from reattach.runs.following.readers import Reader

MAX_LISTED_RUNS: Final = 2_000
MAX_LISTED_READERS: Final = 1_000
"""The most that a report lists, so that a busy process stays quick to ask. It counts all."""


class OpenRunReport(Struct, frozen=True, omit_defaults=True):
    """An open run of a process."""

    run_id: RunId
    tenant: TenantId
    last_seq: Seq
    bytes: int
    """The size of its log."""
    readers: int
    """Its readers in the same process."""
    events_per_second: float
    first_event_at: datetime | None = None
    """When its first event was in the log, if this process wrote it."""


class TenantShare(Struct, frozen=True):
    """The number of a tenant's open runs and readers in a process."""

    runs: int = 0
    readers: int = 0


class StoreOperation(Struct, frozen=True):
    """How long one kind of operation of a store has taken since the start of the process."""

    operation: str
    count: int
    p50_seconds: float | None
    p99_seconds: float | None


class StoreReport(Struct, frozen=True):
    """A store, as a process sees it."""

    store: str
    """``records`` or ``log``."""
    backend: str
    """``sqlite``, ``postgresql``, ``redis`` or ``memory``."""
    operations: tuple[StoreOperation, ...] = ()


class Lease(Struct, frozen=True):
    """The lease of a process."""

    seconds: float
    margin_seconds: float | None
    """The time until others may take its runs over; None before the first beat."""


class ProcessReport(Struct, frozen=True):
    """The condition of a process. ``runs`` and ``readers`` may be cut short; the counts are not."""

    id: str
    """Its id as the owner of runs."""
    version: str
    started_at: datetime
    reported_at: datetime
    draining: bool
    run_count: int
    reader_count: int
    host: str | None = None
    pid: int | None = None
    worker: int | None = None
    """Its slot among the processes that share a port; None if it is alone."""
    connections: int | None = None
    memory_bytes: int | None = None
    event_loop_lag_seconds: float | None = None
    """The longest delay of the event loop in the last seconds."""
    lease: Lease | None = None
    """None if the process shares its stores with no other."""
    stores: Sequence[StoreReport] = ()
    contradictions: Mapping[str, int] = {}
    """Contradictions that its audit has found since its start, by kind."""
    tenants: Mapping[TenantId, TenantShare] = {}
    runs: Sequence[OpenRunReport] = ()
    readers: Sequence[Reader] = ()

    def for_tenant(self, tenant: TenantId) -> "ProcessReport":
        """Return the part that a tenant may see: its own runs and readers.

        Everything else says how much other tenants use the process.
        """
        share = self.tenants.get(tenant, TenantShare())
        return msgspec.structs.replace(
            self,
            host=None,
            pid=None,
            connections=None,
            memory_bytes=None,
            event_loop_lag_seconds=None,
            stores=(),
            run_count=share.runs,
            reader_count=share.readers,
            contradictions={},
            tenants={tenant: share},
            runs=[one for one in self.runs if one.tenant == tenant],
            readers=[one for one in self.readers if one.tenant == tenant],
        )


def memory_bytes() -> int | None:
    """Return the resident memory of this process; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
