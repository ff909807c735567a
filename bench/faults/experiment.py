"""One experiment: clients read and write, a fault hits at a random event, promises are checked."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import httpx2

from bench.faults.history import Finding, Kind
from bench.faults.inject import Fault, Scene
from bench.faults.provider import MODEL
from bench.faults.traffic import SCRIPTED, ServerClient, WatchedRun, server_clients
from reattach.testing.programs.cluster import Cluster
from reattach.testing.programs.relay import Relay

RECOVERY_SECONDS: Final = 5.0
"""Bound of the time to a run's end, beyond its owner's lease and the outage itself."""

GRACE_SECONDS: Final = 20.0
"""How much longer than that an experiment waits before it reports a missing end."""

COUNTED: Final = "[chunks=75][rate=50]"
COUNTED_ANSWER: Final = "".join(f"t{number} " for number in range(75))

TEXTS: Final = (
    COUNTED,
    "[unicode][chunks=90][rate=60]",
    "[think=25][chunks=50][rate=50]",
    "[chunks=75][rate=50][size=2000]",
    "[steps=2][chunks=38][rate=50]",
)
"""Prompts whose answers take about 1.5 seconds and 80 events."""

FAULT_BEFORE_EVENTS: Final = 150
"""The fault hits at the latest after this many events, counted over the run's three readers."""

READERS: Final = 2
"""Readers of each run in addition to its sender."""


@dataclass
class Outcome:
    """The result of one experiment. ``findings`` is empty if every promise was kept."""

    fault: str
    bound_seconds: float
    """Time within which a run must end after the fault."""
    runs: int = 0
    events_read: int = 0
    longest_end_seconds: float = 0.0
    """From the fault to the end of the slowest run."""
    ends: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def report(self, kind: Kind, what: str) -> None:
        self.findings.append(Finding(kind, what))

    def count(self, kind: Kind) -> int:
        return sum(finding.kind is kind for finding in self.findings)


async def run_experiment(
    cluster: Cluster, fault: Fault, seed: int, provider: Relay | None = None
) -> Outcome:
    """Inject ``fault`` into a healthy cluster, repair the cluster, and return what clients saw.

    One run is active on each server, and one more message is sent during the fault. The fault
    waits for a random event of the victim's run. Misbehaviour of a server is a finding, not an
    exception. Faults of the models' provider need the relay in front of it.
    """
    rng = random.Random(f"{fault.name} {seed}")
    async with server_clients(cluster.urls, cluster.api_key) as servers:
        return await _Experiment(cluster, fault, servers, rng, provider).outcome()


class _Experiment:
    def __init__(
        self,
        cluster: Cluster,
        fault: Fault,
        servers: Sequence[ServerClient],
        rng: random.Random,
        provider: Relay | None,
    ) -> None:
        self._cluster = cluster
        self._fault = fault
        self._servers = servers
        self._rng = rng
        self._provider = provider
        self._victim = rng.randrange(len(servers))
        self._due = asyncio.Event()
        self._events_until_fault = rng.randint(1, FAULT_BEFORE_EVENTS)
        self._watched_runs: list[WatchedRun] = []
        self._late: WatchedRun

    async def outcome(self) -> Outcome:
        await self._prepare()
        async with _clients() as clients:
            for watched, server in zip(self._watched_runs, self._servers, strict=True):
                clients.append(asyncio.create_task(watched.send_and_read(server)))
            for watched in [*self._watched_runs, self._late] * READERS:
                clients.append(asyncio.create_task(watched.read()))
            async with asyncio.timeout(GRACE_SECONDS):
                await self._due.wait()
            fault_at = time.monotonic()
            clients.append(asyncio.create_task(self._late.send_and_read()))
            outage_seconds = await self._fault.inject(self._scene())
            bound_seconds = self._cluster.lease_seconds + RECOVERY_SECONDS + outage_seconds
            give_up_at = fault_at + bound_seconds + GRACE_SECONDS
            await asyncio.wait(clients, timeout=max(give_up_at - time.monotonic(), 0))
        outcome = Outcome(self._fault.name, bound_seconds)
        for client in clients:
            if not client.cancelled() and (error := client.exception()) is not None:
                outcome.report(Kind.OTHER, f"a client failed: {error!r}")
        await asyncio.to_thread(self._cluster.mend)
        for watched in [*self._watched_runs, self._late]:
            await self._check(outcome, watched, fault_at)
        return outcome

    async def _prepare(self) -> None:
        for number, server in enumerate(self._servers):
            on_event = self._count if number == self._victim else _ignore
            self._watched_runs.append(
                await self._watch(server, f"the run of server {number}", on_event)
            )
        self._late = await self._watch(self._servers[0], "the run sent during the fault", _ignore)

    async def _watch(
        self, server: ServerClient, name: str, on_event: Callable[[int], None]
    ) -> WatchedRun:
        return WatchedRun(
            self._servers,
            await server.new_conversation(MODEL if self._fault.of_provider else SCRIPTED),
            COUNTED if self._fault.of_provider else self._rng.choice(TEXTS),
            random.Random(self._rng.getrandbits(64)),
            name=name,
            may_lose=self._fault.loses_log,
            on_event=on_event,
        )

    def _count(self, events: int) -> None:
        self._events_until_fault -= events
        if self._events_until_fault <= 0:
            self._due.set()

    def _scene(self) -> Scene:
        ended = self._watched_runs[self._victim].history.ended

        async def wait() -> None:
            with suppress(TimeoutError):  # A missing end becomes a finding.
                async with asyncio.timeout(self._cluster.lease_seconds + GRACE_SECONDS):
                    await ended.wait()

        victim = self._cluster.servers[self._victim]
        return Scene(self._cluster, victim, self._rng, wait, self._provider)

    async def _check(self, outcome: Outcome, watched: WatchedRun, fault_at: float) -> None:
        """Compare what clients saw of one run with what the servers store."""
        history = watched.history
        try:
            await self._compare(watched)
        except (RuntimeError, httpx2.HTTPError) as error:
            history.report(Kind.OTHER, f"its records or log could not be read: {error!r}")
        end = history.end()
        if end not in self._ends_of(watched):
            history.report(Kind.OTHER, f"it ended with {end}")
        if history.ended_at is None:
            history.report(Kind.ORPHAN, "no reader came to an end")
        else:
            seconds = history.ended_at - fault_at
            outcome.longest_end_seconds = max(outcome.longest_end_seconds, seconds)
            if seconds > outcome.bound_seconds:
                history.report(Kind.OTHER, f"it took {seconds:.1f} s to end")
        outcome.runs += 1
        outcome.events_read += history.events_read
        outcome.ends.append(end)
        outcome.findings += history.findings

    def _ends_of(self, watched: WatchedRun) -> set[str]:
        if watched is self._late:  # It may have started during the outage.
            return {"end_turn", "stream_incomplete", "internal_error"}
        if watched is self._watched_runs[self._victim] or not self._fault.of_owner:
            return {"end_turn", *self._fault.ends}
        return {"end_turn"}

    async def _compare(self, watched: WatchedRun) -> None:
        history, server = watched.history, self._rng.choice(self._servers)
        runs = await server.get("/v1/runs/", conversation_id=watched.conversation_id)
        if len(runs) != 1:
            history.report(Kind.DOUBLE, f"{len(runs)} runs for one OTID")
        for run in runs:
            if run["status"] not in {"completed", "failed"}:
                history.report(Kind.ORPHAN, f"{run['id']} is {run['status']}")
                return
            if run["id"] != history.run_id:
                history.report(Kind.DOUBLE, f"{run['id']} is another run than {history.run_id}")
            history.check_log(*await server.log_of(run["id"]))
        if watched.text == COUNTED and history.end() == "end_turn" and not history.may_lose:
            history.check_text(COUNTED_ANSWER)
        async with asyncio.timeout(GRACE_SECONDS):
            again = WatchedRun(
                self._servers, watched.conversation_id, "once more", self._rng, name="a later run"
            )
            await again.send_and_read()
        history.findings += again.history.findings
        if again.history.end() != "end_turn":
            history.report(Kind.OTHER, f"a later run ended with {again.history.end()}")


@asynccontextmanager
async def _clients() -> AsyncIterator[list[asyncio.Task[None]]]:
    """Collect tasks, and cancel and await them all on exit."""
    tasks: list[asyncio.Task[None]] = []
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _ignore(_events: int) -> None:
    """Count nothing."""
