"""The reports of all living processes, gathered when somebody asks for them.

Nobody writes a report until one is wanted. The process that is asked notifies the others through
the records; each writes its report into the row of its lease, and the asker reads those rows.
"""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Final

import msgspec
import structlog

from reattach import __version__
from reattach.domain.clock import Clock
from reattach.domain.errors import ReattachError
from reattach.domain.ids import RunId, Seq, TenantId
from reattach.records.base import OwnerReport
from reattach.records.records import Records
from reattach.runs.driver import RunDriver
from reattach.runs.following.readers import Reader
from reattach.runs.reports.rates import Rates
from reattach.runs.reports.report import (
    MAX_LISTED_READERS,
    MAX_LISTED_RUNS,
    Lease,
    OpenRunReport,
    ProcessReport,
    StoreReport,
    TenantShare,
    memory_bytes,
)
from reattach.runs.service import RunService
from reattach.single_flight import Recent

logger = structlog.get_logger(__name__)

FRESH_SECONDS: Final = 0.5
"""Age up to which gathered reports are returned again, however many ask."""

ANSWER_SECONDS: Final = 1.0
"""How long the other processes have to report. Those that do not are shown as they were."""

_LOOK_SECONDS: Final = 0.05
"""The interval at which the asker looks for reports."""


@dataclass(slots=True)
class Process:
    """Facts about a process beside its runs. The parts of the server set the functions."""

    worker: int | None = None
    connections: Callable[[], int] | None = None
    event_loop_lag_seconds: Callable[[], float | None] | None = None
    stores: Callable[[], Sequence[StoreReport]] = tuple
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


class Reports:
    """The report of this process, and those of all that share its records."""

    def __init__(
        self, runs: RunService, records: Records, clock: Clock, process: Process | None = None
    ) -> None:
        self.process = process or Process()
        self._runs = runs
        self._records = records
        self._clock = clock
        self._started_at = clock.now()
        self._rates = Rates()
        self._gathered = Recent(
            "gather reports",
            self._gather,
            fresh_seconds=FRESH_SECONDS,
            time=clock.monotonic_seconds,
        )
        self._writing: asyncio.Task[None] | None = None
        runs.on_report_wanted = self._write_soon

    async def gather(self) -> list[ProcessReport]:
        """Return a report of each living process, this one first, then the oldest first.

        A process that does not answer within ANSWER_SECONDS appears as it last reported, or not at
        all if it never did. Callers within FRESH_SECONDS share the result.

        Raises:
            StoreUnavailableError: The records do not answer.
        """
        if not self._runs.ownership.shared:
            return [await self.own()]
        return await self._gathered.get()

    async def _gather(self) -> list[ProcessReport]:
        asked_at = await self._records.owners.ask_for_reports()
        until = self._clock.monotonic_seconds() + ANSWER_SECONDS
        own = await self.own()
        while True:
            others = [one for one in await self._records.owners.reports() if one.owner != own.id]
            has_all = all(_is_since(one.reported_at, asked_at) for one in others)
            if has_all or self._clock.monotonic_seconds() >= until:
                break
            await self._clock.sleep(_LOOK_SECONDS)
        found = [report for one in others if (report := _parse(one)) is not None]
        return [own, *sorted(found, key=lambda report: (report.started_at, report.id))]

    async def own(self) -> ProcessReport:
        """Return the report of this process."""
        memory = await asyncio.to_thread(memory_bytes)
        process, ownership = self.process, self._runs.ownership
        lag = process.event_loop_lag_seconds
        drivers = self._runs.open_runs.drivers
        readers, by_run, readers_of = self._readers()
        runs_of = Counter(driver.run.tenant for driver in drivers.values())
        return ProcessReport(
            id=ownership.owner,
            version=__version__,
            started_at=self._started_at,
            reported_at=self._clock.now(),
            draining=self._runs.draining,
            run_count=len(drivers),
            reader_count=len(self._runs.readers),
            host=process.host,
            pid=process.pid,
            worker=process.worker,
            connections=None if process.connections is None else process.connections(),
            memory_bytes=memory,
            event_loop_lag_seconds=None if lag is None else lag(),
            lease=Lease(ownership.lease_seconds, ownership.margin_seconds)
            if ownership.shared
            else None,
            stores=process.stores(),
            contradictions=asdict(self._runs.audit.found),
            tenants={
                tenant: TenantShare(runs_of[tenant], readers_of[tenant])
                for tenant in sorted({*runs_of, *readers_of})
            },
            runs=self._open_runs(list(drivers.values()), by_run),
            readers=readers,
        )

    def _readers(self) -> tuple[list[Reader], Counter[str], Counter[TenantId]]:
        """Return the first readers, and how many each run and each tenant has."""
        listed: list[Reader] = []
        by_run: Counter[str] = Counter()
        by_tenant: Counter[TenantId] = Counter()
        for following, origin in self._runs.readers.origins():
            by_run[following.run_id] += 1
            by_tenant[origin.tenant] += 1
            if len(listed) < MAX_LISTED_READERS:
                listed.append(Reader.of(following, origin))
        return listed, by_run, by_tenant

    def _open_runs(
        self, drivers: Sequence[RunDriver], readers: Counter[str]
    ) -> list[OpenRunReport]:
        newest = sorted(drivers, key=lambda driver: driver.run.created_at, reverse=True)
        positions: dict[str, Seq] = {driver.run.id: _last_seq(driver) for driver in drivers}
        rates = self._rates.look(positions, self._clock.monotonic_seconds())
        now = self._clock.now()
        return [
            OpenRunReport(
                run_id=RunId(driver.run.id),
                tenant=driver.run.tenant,
                last_seq=positions[driver.run.id],
                bytes=0 if driver.writer is None else driver.writer.logged_bytes,
                readers=readers[driver.run.id],
                events_per_second=rates.get(driver.run.id, _mean_rate(driver, now)),
                first_event_at=None if driver.writer is None else driver.writer.first_event_at,
            )
            for driver in newest[:MAX_LISTED_RUNS]
        ]

    def _write_soon(self) -> None:
        """Write the report of this process for another one, unless that is being done."""
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="write report")

    async def _write(self) -> None:
        report = msgspec.json.encode(await self.own()).decode()
        try:
            await self._records.owners.save_report(self._runs.ownership.owner, report)
        except ReattachError as error:
            logger.warning("report not written", reason=error.detail)

    async def aclose(self) -> None:
        """Write no further reports."""
        self._runs.on_report_wanted = _ignore
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})


def _ignore() -> None:
    """Answer nobody any longer."""


def _last_seq(driver: RunDriver) -> Seq:
    return Seq(0) if driver.writer is None else driver.writer.last_seq


def _mean_rate(driver: RunDriver, now: datetime) -> float:
    """Return the events per second of the run's whole life."""
    seconds = max((now - driver.run.created_at) / timedelta(seconds=1), 1.0)
    return _last_seq(driver) / seconds


def _is_since(reported_at: datetime | None, asked_at: datetime) -> bool:
    return reported_at is not None and reported_at >= asked_at


def _parse(written: OwnerReport) -> ProcessReport | None:
    """Return the report of another process; None if it has none that this version understands."""
    if written.report is None:
        return None
    try:
        return msgspec.json.decode(written.report, type=ProcessReport)
    except msgspec.MsgspecError:
        logger.warning("report of another process cannot be read", owner=written.owner)
        return None
