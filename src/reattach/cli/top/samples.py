"""Samples of a server: its processes and open runs at one moment, and the rates between samples."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from reattach.cli.remote.answers import ProcessPage, RunPage, check_answer
from reattach.cli.remote.server import path_with
from reattach.cli.remote.tables import lag_text
from reattach.client import Client
from reattach.domain.clock import Clock
from reattach.domain.events import RunStatus
from reattach.domain.limits.requests import MAX_PAGE_ITEMS

Json = Mapping[str, Any]

ANSWER_SECONDS: Final = 5.0
_RATE_SAMPLES: Final = 5
"""A rate is that of the last 2 s at two samples a second: even, and soon right after a change."""

_ACTIVE: Final = tuple(one.value for one in RunStatus if one.is_active)


@dataclass(frozen=True, slots=True)
class Sample:
    """The processes and open runs of a server at one moment."""

    at: datetime
    processes: Sequence[Json]
    runs: Sequence[Json]
    """Open runs, the newest first, with their ``rate`` of events a second or None."""
    open_runs: int
    """All open runs; ``runs`` has at most 1000."""

    @property
    def readers(self) -> int:
        return sum(one["readers"] for one in self.processes)

    @property
    def events_per_second(self) -> float:
        return sum(run["rate"] or 0.0 for run in self.runs)

    @property
    def lag_seconds(self) -> float | None:
        """The longest lag of an event loop; None if no process has reported one."""
        lags = [one["event_loop_lag_seconds"] for one in self.processes]
        return max((lag for lag in lags if lag is not None), default=None)

    @property
    def summary(self) -> tuple[str, ...]:
        """The totals in words."""
        processes, readers = len(self.processes), self.readers
        return (
            f"{processes} {'process' if processes == 1 else 'processes'}",
            f"{self.open_runs:,} {'run' if self.open_runs == 1 else 'runs'}",
            f"{self.events_per_second:,.0f} events/s",
            f"{readers:,} {'reader' if readers == 1 else 'readers'}",
            f"lag {lag_text(self.lag_seconds)}",
        )

    @property
    def totals(self) -> dict[str, Any]:
        return {
            "processes": len(self.processes),
            "open_runs": self.open_runs,
            "events_per_second": round(self.events_per_second, 1),
            "readers": self.readers,
            "event_loop_lag_seconds": self.lag_seconds,
        }

    def as_json(self) -> dict[str, Any]:
        at = self.at.isoformat().replace("+00:00", "Z")
        return {"at": at, **self.totals, "processes": self.processes, "runs": self.runs}


class Sampler:
    """Takes samples of a server over HTTP."""

    def __init__(self, client: Client, clock: Clock, *, url: str, tenant: str | None) -> None:
        self._client = client
        self._url = url
        self._clock = clock
        of_tenant = {"tenant": tenant}
        self._processes_path = path_with("/v1/admin/processes", of_tenant)
        self._runs_path = path_with(
            "/v1/admin/runs", {"status": _ACTIVE, "limit": MAX_PAGE_ITEMS, **of_tenant}
        )
        self._seen: dict[str, deque[tuple[float, int]]] = {}
        """The last moments and counts of events of each open run."""

    async def take(self) -> Sample:
        """Ask the server for its processes and open runs. Raises as ``Client.request`` does."""
        processes = await self._get(self._processes_path, ProcessPage)
        answer = await self._get(self._runs_path, RunPage)
        now = self._clock.monotonic_seconds()
        runs = [{**run, "rate": self._rate_of(run, now)} for run in answer["items"]]
        open_ids = {run["id"] for run in runs}
        self._seen = {one: seen for one, seen in self._seen.items() if one in open_ids}
        in_place = sorted(processes["items"], key=place_of)
        return Sample(self._clock.now(), in_place, runs, answer["active"])

    async def cancel(self, run_id: str) -> str:
        """Cancel a run, and return its status. Raises as ``Client.request`` does."""
        statuses = await self._client.cancel(run_id=run_id)
        return statuses.get(run_id, "unknown")

    async def _get(self, path: str, shape: Any) -> Any:
        answer = await self._client.request("GET", path, timeout_seconds=ANSWER_SECONDS)
        return check_answer(answer, shape, self._url)

    def _rate_of(self, run: Json, now: float) -> float | None:
        """Return the events a second since the samples before; at first, those of the run."""
        events: int | None = run["events"]
        average: float | None = run["events_per_second"]
        if events is None:
            return average
        seen = self._seen.setdefault(run["id"], deque(maxlen=_RATE_SAMPLES))
        seen.append((now, events))
        since, before = seen[0]
        return average if now <= since else max(events - before, 0) / (now - since)


def place_of(process: Json) -> tuple[str, int, str]:
    """Return the place of a process in the table, whichever process answers."""
    worker: int | None = process["worker"]
    return str(process["host"] or ""), -1 if worker is None else worker, str(process["id"])
