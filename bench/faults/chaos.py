"""Owners of runs that die, stop and leave under load: random faults, and rolling restarts."""

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.faults.experiment import Outcome
from bench.faults.history import Kind
from bench.faults.load import ROUNDS, check, load_on
from bench.faults.repeated import table
from bench.faults.tools import tool_environment
from bench.options import Options
from reattach.testing.programs.cluster import Cluster, ClusterServer

INTERVAL_SECONDS: Final = 2.0
"""Time between two faults."""

CHAOS_ENVIRONMENT: Final = {"REATTACH_DRAIN_SECONDS": "1"}
"""Runs take longer than this, so a server that is stopped hands them over."""

_AWAY_SECONDS: Final = (0.0, 1.0)
"""Range of the time between the death of a server and its next start."""

_ASLEEP_SECONDS: Final = (0.2, 3.0)
"""Range of the time for which a paused server sleeps beyond its lease."""


@dataclass
class Siege:
    """A cluster whose servers are hit. ``faults`` counts what happened to them."""

    cluster: Cluster
    rng: random.Random
    faults: Counter[str]
    outcome: Outcome
    stop_seconds: list[float] = field(default_factory=list)
    """How long each server took from SIGTERM to its exit."""

    async def kill(self, server: ClusterServer) -> None:
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(self.rng.uniform(*_AWAY_SECONDS))
        await asyncio.to_thread(server.start)

    async def pause(self, server: ClusterServer) -> None:
        """Let the server sleep until another one has its runs, and wake it as a zombie."""
        server.pause()
        await asyncio.sleep(self.cluster.lease_seconds + self.rng.uniform(*_ASLEEP_SECONDS))
        server.resume()

    async def restart(self, server: ClusterServer) -> None:
        begin = time.monotonic()
        status = await asyncio.to_thread(server.stop)
        self.stop_seconds.append(time.monotonic() - begin)
        if status != 0:
            self.outcome.report(Kind.OTHER, f"a stopped server ended with status {status}")
        await asyncio.to_thread(server.start)


Attack = Callable[[Siege, float], Awaitable[None]]
"""Inject faults for so many seconds."""


async def random_faults(siege: Siege, seconds: float) -> None:
    """Hit a random server every two seconds, unless all of them are still down."""
    attacks = {"kill -9": siege.kill, "SIGSTOP": siege.pause, "SIGTERM": siege.restart}
    hit: dict[ClusterServer, asyncio.Task[None]] = {}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(min(INTERVAL_SECONDS, max(until - time.monotonic(), 0)))
        healthy = [one for one in siege.cluster.servers if one not in hit or hit[one].done()]
        if healthy:
            server, name = siege.rng.choice(healthy), siege.rng.choice([*attacks])
            siege.faults[name] += 1
            if server in hit:
                hit[server].result()
            hit[server] = asyncio.create_task(attacks[name](server))
    await asyncio.gather(*hit.values())


async def rolling_restarts(siege: Siege, seconds: float) -> None:
    """Restart one server after the other by SIGTERM, again and again."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for server in siege.cluster.servers:
            siege.faults["SIGTERM"] += 1
            await siege.restart(server)


@dataclass(frozen=True, slots=True)
class Scenario:
    """An attack, and the interruptions of runs that it may cause."""

    name: str
    attack: Attack
    interruptions: Sequence[str]
    strict: bool
    """Whether no resume may be refused."""


CHAOS: Final = Scenario(
    "kill -9, SIGSTOP and SIGTERM of random owners", random_faults, ("crash", "handover"), False
)
ROLLING: Final = Scenario("rolling restarts by SIGTERM", rolling_restarts, ("handover",), True)


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one attack under load."""

    seed: int
    faults: Counter[str]
    stop_seconds: Sequence[float]
    survived: Counter[str]
    """The interruptions after which runs went on, by kind."""
    outcome: Outcome

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in self.faults.items())
        survived = ", ".join(f"{count} {kind}" for kind, count in self.survived.items())
        completed = self.outcome.ends.count("end_turn")
        head = (
            f"seed {self.seed}: {self.outcome.runs} runs, {completed} completed; "
            f"faults: {faults}; runs went on after: {survived or 'nothing'}"
        )
        if self.stop_seconds:
            head += f"; stops took up to {max(self.stop_seconds):.1f} s"
        findings = (f"    {one.kind}: {one.what}" for one in self.outcome.findings)
        return "\n".join([head, *findings])


async def under_load(
    cluster: Cluster,
    scenario: Scenario,
    journal: Path,
    *,
    runs: int,
    seconds: float,
    seed: int,
    rounds: tuple[int, int] = ROUNDS,
) -> Report:
    """Attack a healthy cluster with ``runs`` open runs; repair it; return what clients saw.

    Each run calls a tool as often as ``rounds`` allows, at least and at most. The servers have the
    tools of ``bench.faults.tools``, which write to ``journal``.
    """
    rng = random.Random(f"{scenario.name} {seed}")
    outcome = Outcome(scenario.name, 0.0)
    siege = Siege(cluster, random.Random(rng.getrandbits(64)), Counter(), outcome)
    async with load_on(cluster, runs, rng, rounds=rounds, strict=scenario.strict) as load:
        await scenario.attack(siege, seconds)
        await asyncio.to_thread(cluster.mend)
    survived = await check(load, cluster, outcome, journal, scenario.interruptions)
    return Report(seed, siege.faults, siege.stop_seconds, survived, outcome)


def _main(scenario: Scenario, options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="reattach-") as folder:
        journal = Path(folder) / "calls"
        environment = {**CHAOS_ENVIRONMENT, **tool_environment(journal)}
        with Cluster(lease_seconds=options.lease_seconds, environment=environment) as cluster:
            report = asyncio.run(
                under_load(
                    cluster,
                    scenario,
                    journal,
                    runs=options.runs,
                    seconds=options.seconds,
                    seed=options.seed,
                )
            )
            output = cluster.output
    print(f"  {report}\n\n{table([report.outcome])}")
    if report.outcome.findings:
        print(output)
        raise SystemExit("A promise was broken. The findings are listed above.")


def chaos(options: Options) -> None:
    """The benchmark ``chaos``."""
    _main(CHAOS, options)


def rolling(options: Options) -> None:
    """The benchmark ``rolling``."""
    _main(ROLLING, options)
