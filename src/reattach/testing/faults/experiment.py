"""One trial: clients at work, a fault at a random event, and then what they saw of it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import httpx2

from reattach.testing.faults.history import Finding, Kind
from reattach.testing.faults.inject import Fault, Scene
from reattach.testing.faults.traffic import Door, Talk, doors
from reattach.testing.programs.cluster import Cluster

RECOVERY_SECONDS: Final = 5.0
"""How long a run's end may take beyond its owner's lease and the outage itself."""

GRACE_SECONDS: Final = 20.0
"""How much longer a trial waits for an end before it says that there is none."""

TEXTS: Final = (
    "[chunks=75][rate=50]",
    "[unicode][chunks=90][rate=60]",
    "[think=25][chunks=50][rate=50]",
    "[chunks=75][rate=50][size=2000]",
    "[steps=2][chunks=38][rate=50]",
)
"""Answers of a second and a half and some eighty events."""

FAULT_BEFORE_EVENTS: Final = 150
"""The fault comes at the latest after so many events, of the run's three readers together."""

READERS: Final = 2
"""Readers of each run, beside its sender."""


@dataclass
class Outcome:
    """What came of one trial. ``findings`` is empty if every promise was kept."""

    fault: str
    bound_seconds: float
    """Within which a run must have ended after the fault."""
    runs: int = 0
    events_read: int = 0
    longest_end_seconds: float = 0.0
    """From the fault to the end of the run that took longest."""
    ends: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def count(self, kind: Kind) -> int:
        return sum(finding.kind is kind for finding in self.findings)


async def trial(cluster: Cluster, fault: Fault, seed: int) -> Outcome:
    """Let ``fault`` befall the cluster, which must be whole, and is whole again afterwards.

    A run is under way at each server, the victim's being the one that the fault waits for; one
    more message is sent while the fault lasts. Never raises because of what a server did.
    """
    rng = random.Random(f"{fault.name} {seed}")  # noqa: S311  to be drawn again
    async with doors(cluster.urls, cluster.api_key) as servers:
        return await _Trial(cluster, fault, servers, rng).outcome()


class _Trial:
    def __init__(
        self, cluster: Cluster, fault: Fault, servers: Sequence[Door], rng: random.Random
    ) -> None:
        self._cluster = cluster
        self._fault = fault
        self._servers = servers
        self._rng = rng
        self._victim = rng.randrange(len(servers))
        self._due = asyncio.Event()
        self._events_until_fault = rng.randint(1, FAULT_BEFORE_EVENTS)
        self._talks: list[Talk] = []
        self._late: Talk

    async def outcome(self) -> Outcome:
        await self._prepare()
        async with _clients() as clients:
            for talk, server in zip(self._talks, self._servers, strict=True):
                clients.append(asyncio.create_task(talk.send_and_read(server)))
            for talk in [*self._talks, self._late] * READERS:
                clients.append(asyncio.create_task(talk.read()))
            async with asyncio.timeout(GRACE_SECONDS):
                await self._due.wait()
            fault_at = time.monotonic()
            clients.append(asyncio.create_task(self._late.send_and_read()))
            outage_seconds = await self._fault.befall(self._scene())
            bound_seconds = self._cluster.lease_seconds + RECOVERY_SECONDS + outage_seconds
            give_up_at = fault_at + bound_seconds + GRACE_SECONDS
            await asyncio.wait(clients, timeout=max(give_up_at - time.monotonic(), 0))
        outcome = Outcome(self._fault.name, bound_seconds)
        for client in clients:
            if not client.cancelled() and (error := client.exception()) is not None:
                outcome.findings.append(Finding(Kind.OTHER, f"a client broke: {error!r}"))
        await asyncio.to_thread(self._cluster.mend)
        for talk in [*self._talks, self._late]:
            await self._judge(outcome, talk, fault_at)
        return outcome

    async def _prepare(self) -> None:
        for number, server in enumerate(self._servers):
            on_event = self._count if number == self._victim else _ignore
            self._talks.append(await self._talk(server, f"the run of server {number}", on_event))
        self._late = await self._talk(self._servers[0], "the run sent during the fault", _ignore)

    async def _talk(self, server: Door, name: str, on_event: Callable[[int], None]) -> Talk:
        return Talk(
            self._servers,
            await server.new_conversation(),
            self._rng.choice(TEXTS),
            random.Random(self._rng.getrandbits(64)),  # noqa: S311  to be drawn again
            name=name,
            may_lose=self._fault.loses_log,
            on_event=on_event,
        )

    def _count(self, events: int) -> None:
        self._events_until_fault -= events
        if self._events_until_fault <= 0:
            self._due.set()

    def _scene(self) -> Scene:
        ended = self._talks[self._victim].witness.ended

        async def wait() -> None:
            with suppress(TimeoutError):  # There is a finding of it, then.
                async with asyncio.timeout(self._cluster.lease_seconds + GRACE_SECONDS):
                    await ended.wait()

        return Scene(self._cluster, self._cluster.servers[self._victim], self._rng, wait)

    async def _judge(self, outcome: Outcome, talk: Talk, fault_at: float) -> None:
        """Hold what was seen of one run against what the servers keep of it."""
        witness = talk.witness
        try:
            await self._compare(talk)
        except (RuntimeError, httpx2.HTTPError) as error:
            witness.find(Kind.OTHER, f"not to be looked at: {error!r}")
        end = witness.end()
        if end not in self._ends_of(talk):
            witness.find(Kind.OTHER, f"it ended with {end}")
        if witness.ended_at is None:
            witness.find(Kind.ORPHAN, "no reader came to an end")
        else:
            seconds = witness.ended_at - fault_at
            outcome.longest_end_seconds = max(outcome.longest_end_seconds, seconds)
            if seconds > outcome.bound_seconds:
                witness.find(Kind.OTHER, f"it took {seconds:.1f} s to end")
        outcome.runs += 1
        outcome.events_read += witness.events_read
        outcome.ends.append(end)
        outcome.findings += witness.findings

    def _ends_of(self, talk: Talk) -> set[str]:
        if talk is self._late:  # Its beginning may fall into the outage.
            return {"end_turn", "stream_incomplete", "internal_error"}
        if talk is self._talks[self._victim] or not self._fault.of_owner:
            return {"end_turn", *self._fault.ends}
        return {"end_turn"}

    async def _compare(self, talk: Talk) -> None:
        witness, server = talk.witness, self._rng.choice(self._servers)
        runs = await server.got("/v1/runs/", conversation_id=talk.conversation_id)
        if len(runs) != 1:
            witness.find(Kind.DOUBLE, f"{len(runs)} runs for one OTID")
        for run in runs:
            if run["status"] not in {"completed", "failed"}:
                witness.find(Kind.ORPHAN, f"{run['id']} is {run['status']}")
                return
            if run["id"] != witness.run_id:
                witness.find(Kind.DOUBLE, f"{run['id']} is another run than {witness.run_id}")
            witness.check_log(*await server.log_of(run["id"]))
        async with asyncio.timeout(GRACE_SECONDS):
            again = Talk(
                self._servers, talk.conversation_id, "once more", self._rng, name="a later run"
            )
            await again.send_and_read()
        witness.findings += again.witness.findings
        if again.witness.end() != "end_turn":
            witness.find(Kind.OTHER, f"a later run ended with {again.witness.end()}")


@asynccontextmanager
async def _clients() -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks that have all ended when the context has."""
    tasks: list[asyncio.Task[None]] = []
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _ignore(_events: int) -> None:
    """Count nothing."""
