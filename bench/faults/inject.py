"""Faults that can be injected into a cluster, and the run ends that each of them allows."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from reattach.domain.limits import APPEND_RETRY_SECONDS
from reattach.testing.programs.cluster import Cluster, ClusterServer
from reattach.testing.programs.program import Program
from reattach.testing.programs.relay import Relay


@dataclass(frozen=True, slots=True)
class Scene:
    """The cluster to inject a fault into. ``ended`` waits until the victim's run has ended."""

    cluster: Cluster
    victim: ClusterServer
    rng: random.Random
    ended: Callable[[], Awaitable[None]]
    provider: Relay | None
    """The relay in front of the models' provider, if there is one."""


Inject = Callable[[Scene], Awaitable[float]]
"""Inject a fault, undo it, and return how many seconds of outage it caused."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault and the damage that it may do.

    ``ends`` are the error types that runs may end with because of it, beside their usual end.
    """

    name: str
    inject: Inject
    ends: frozenset[str] = frozenset()
    of_owner: bool = False
    """Whether only the victim's runs may end so."""
    loses_log: bool = False
    """Whether it loses events that the log has acknowledged."""
    of_provider: bool = False
    """Whether it hits the provider, so that the runs need a model of it."""


OWNER_DIED: Final = frozenset({"stream_incomplete"})
STORE_FAILED: Final = frozenset({"internal_error"})

_LONG: Final = (APPEND_RETRY_SECONDS + 2, APPEND_RETRY_SECONDS + 2)
"""Longer than a run waits for its store."""


async def _kill(scene: Scene) -> float:
    await asyncio.to_thread(scene.victim.kill)
    return 0.0


async def _drain(scene: Scene) -> float:
    """Stop the server with SIGTERM and start it again once it has drained."""
    begin = time.monotonic()
    await asyncio.to_thread(scene.victim.stop)
    await asyncio.to_thread(scene.victim.start)
    return time.monotonic() - begin


async def _roll(scene: Scene) -> float:
    """Restart all servers with SIGTERM, one after the other, beginning with the victim."""
    begin = time.monotonic()
    servers = scene.cluster.servers
    first = servers.index(scene.victim)
    for server in [*servers[first:], *servers[:first]]:
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
    return time.monotonic() - begin


async def _pause(scene: Scene) -> float:
    scene.victim.pause()
    await scene.ended()
    scene.victim.resume()
    return 0.0


def _redis(scene: Scene) -> list[Relay]:
    return [server.redis for server in scene.cluster.servers]


def _postgresql(scene: Scene) -> list[Relay]:
    return [server.postgresql for server in scene.cluster.servers]


def _provider(scene: Scene) -> list[Relay]:
    assert scene.provider is not None, "the experiment needs a provider"
    return [scene.provider]


Relays = Callable[[Scene], Sequence[Relay]]


def _cut(relays: Relays) -> Inject:
    async def inject(scene: Scene) -> float:
        for _ in range(scene.rng.randint(1, 5)):
            for relay in relays(scene):
                relay.cut()
            await asyncio.sleep(scene.rng.uniform(0, 0.2))
        return 1.0

    return inject


def _disturb(
    relays: Relays,
    how: Callable[[Relay, random.Random], None],
    seconds: tuple[float, float] = (1, 1),
) -> Inject:
    """Disturb the relays for a random time within ``seconds``, then restore them."""

    async def inject(scene: Scene) -> float:
        for relay in relays(scene):
            how(relay, scene.rng)
        lasting_seconds = scene.rng.uniform(*seconds)
        await asyncio.sleep(lasting_seconds)
        for relay in relays(scene):
            relay.mend()
        return lasting_seconds

    return inject


def _delay(relay: Relay, rng: random.Random) -> None:
    relay.delay_seconds = rng.uniform(0.02, 0.1)


def _split(relay: Relay, rng: random.Random) -> None:
    relay.piece_bytes = rng.randint(1, 7)


def _swallow(relays: Relays) -> Inject:
    """Drop all packets for a while, then reset the connections that are left half-open."""
    return _disturb(relays, lambda relay, _: relay.swallow(), (0.5, 2))


def _strand(relays: Relays) -> Inject:
    """Leave existing connections half-open: nothing passes. New connections work."""

    async def inject(scene: Scene) -> float:
        for relay in relays(scene):
            relay.strand()
        return 0.0

    return inject


def _restart_store(
    end: Callable[[Cluster], Program], seconds: tuple[float, float], *, start_seconds: float = 0.0
) -> Inject:
    """End a store, and start it again after a random time within ``seconds``."""

    async def inject(scene: Scene) -> float:
        store = await asyncio.to_thread(end, scene.cluster)
        away_seconds = scene.rng.uniform(*seconds)
        await asyncio.sleep(away_seconds)
        await asyncio.to_thread(store.start)
        return away_seconds + start_seconds

    return inject


def _kill_redis(cluster: Cluster) -> Program:
    cluster.redis.kill()
    return cluster.redis


def _empty_redis(cluster: Cluster) -> Program:
    cluster.redis.kill()
    cluster.redis.forget()
    return cluster.redis


def _stop_postgresql(cluster: Cluster) -> Program:
    cluster.postgresql.stop()
    return cluster.postgresql


def _kill_postgresql(cluster: Cluster) -> Program:
    cluster.postgresql.kill()
    return cluster.postgresql


def _of_victim(relays: Relays) -> Relays:
    """Select the victim's relays only; the other servers are not affected."""

    def chosen(scene: Scene) -> Sequence[Relay]:
        own = {scene.victim.redis, scene.victim.postgresql}
        return [relay for relay in relays(scene) if relay in own]

    return chosen


FAULTS: Final[Sequence[Fault]] = (
    Fault("kill -9 of the owner", _kill),
    Fault("SIGSTOP beyond the lease, then SIGCONT", _pause),
    Fault("SIGTERM of the owner, then a start", _drain),
    Fault("all servers restarted by SIGTERM, one after the other", _roll),
    Fault("streams of the models' provider cut", _cut(_provider), of_provider=True),
    Fault("connections to Redis cut", _cut(_redis)),
    Fault("connections to Redis slow", _disturb(_redis, _delay)),
    Fault("bytes from and to Redis split", _disturb(_redis, _split)),
    Fault("network to Redis silent, then reset", _swallow(_redis)),
    Fault("the owner's connections to Redis half-open", _strand(_of_victim(_redis))),
    Fault("connections to PostgreSQL cut", _cut(_postgresql)),
    Fault("connections to PostgreSQL slow", _disturb(_postgresql, _delay)),
    Fault("bytes from and to PostgreSQL split", _disturb(_postgresql, _split)),
    # Silence may outlast a short lease; then the others rightly declare the owner dead.
    Fault("network to PostgreSQL silent, then reset", _swallow(_postgresql), OWNER_DIED),
    Fault(
        "the owner's connections to PostgreSQL half-open",
        _strand(_of_victim(_postgresql)),
        OWNER_DIED,
        of_owner=True,
    ),
    Fault(
        "Redis killed and started, appendfsync always",
        _restart_store(_kill_redis, (0, 1.5), start_seconds=0.5),
    ),
    Fault(
        "Redis killed and started empty",
        _restart_store(_empty_redis, (0, 1), start_seconds=0.5),
        STORE_FAILED,
        loses_log=True,
    ),
    Fault(
        "PostgreSQL stopped and started",
        _restart_store(_stop_postgresql, (0, 1), start_seconds=1),
        OWNER_DIED,
    ),
    Fault(
        "PostgreSQL crashed and started",
        _restart_store(_kill_postgresql, (0, 1), start_seconds=1),
        OWNER_DIED,
    ),
    Fault("Redis away for longer than runs wait", _restart_store(_kill_redis, _LONG), STORE_FAILED),
    Fault(
        "PostgreSQL away for longer than runs wait",
        _restart_store(_stop_postgresql, _LONG),
        OWNER_DIED | STORE_FAILED,
    ),
)


def combined(*faults: Fault) -> Fault:
    """Return one fault that injects all of ``faults`` at once."""

    async def inject(scene: Scene) -> float:
        return max(await asyncio.gather(*(fault.inject(scene) for fault in faults)))

    return Fault(
        " and ".join(fault.name for fault in faults),
        inject,
        frozenset().union(*(fault.ends for fault in faults)),
        of_owner=all(fault.of_owner for fault in faults if fault.ends),
        loses_log=any(fault.loses_log for fault in faults),
        of_provider=any(fault.of_provider for fault in faults),
    )


def fault_named(words: str) -> Fault:
    """Return the one fault whose name begins with ``words``."""
    (fault,) = [fault for fault in FAULTS if fault.name.startswith(words)]
    return fault
