"""What can befall a cluster while it works: each as a function, and what may come of it."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from reattach.limits import APPEND_RETRY_SECONDS
from reattach.testing.cluster import Cluster, ClusterServer
from reattach.testing.relay import Relay


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a fault happens: ``victim`` works on a run, whose end ``ended`` waits for."""

    cluster: Cluster
    victim: ClusterServer
    rng: random.Random
    ended: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """``befall`` does it and undoes it where that is part of it; it returns the outage's seconds.

    ``ends`` are the ends that runs may have because of it, beside the one that they have without.
    """

    name: str
    befall: Callable[[Scene], Awaitable[float]]
    ends: frozenset[str] = frozenset()
    of_owner: bool = False
    """Only the victim's runs may have them."""
    loses_log: bool = False
    """Events that were acknowledged are lost by it."""


OWNER_DIED: Final = frozenset({"stream_incomplete"})
STORE_FAILED: Final = frozenset({"internal_error"})

AWAY_SECONDS: Final = APPEND_RETRY_SECONDS + 2
"""Longer than a run waits for its store."""


async def _kill(scene: Scene) -> float:
    await asyncio.to_thread(scene.victim.kill)
    return 0.0


async def _pause(scene: Scene) -> float:
    scene.victim.pause()
    await scene.ended()
    scene.victim.resume()
    return 0.0


def _redis(scene: Scene) -> list[Relay]:
    return [server.redis for server in scene.cluster.servers]


def _postgresql(scene: Scene) -> list[Relay]:
    return [server.postgresql for server in scene.cluster.servers]


Relays = Callable[[Scene], Sequence[Relay]]


def _cut(relays: Relays) -> Callable[[Scene], Awaitable[float]]:
    async def befall(scene: Scene) -> float:
        for _ in range(scene.rng.randint(1, 5)):
            for relay in relays(scene):
                relay.cut()
            await asyncio.sleep(scene.rng.uniform(0, 0.2))
        return 1.0

    return befall


def _delay(relays: Relays) -> Callable[[Scene], Awaitable[float]]:
    async def befall(scene: Scene) -> float:
        for relay in relays(scene):
            relay.delay_seconds = scene.rng.uniform(0.02, 0.1)
        await asyncio.sleep(1)
        for relay in relays(scene):
            relay.mend()
        return 1.0

    return befall


def _split(relays: Relays) -> Callable[[Scene], Awaitable[float]]:
    async def befall(scene: Scene) -> float:
        for relay in relays(scene):
            relay.piece_bytes = scene.rng.randint(1, 7)
        await asyncio.sleep(1)
        for relay in relays(scene):
            relay.mend()
        return 1.0

    return befall


def _strand(relays: Relays) -> Callable[[Scene], Awaitable[float]]:
    """The connections that there are stay, and nothing passes any more; new ones are well."""

    async def befall(scene: Scene) -> float:
        for relay in relays(scene):
            relay.strand()
        return 0.0

    return befall


def _swallow(relays: Relays) -> Callable[[Scene], Awaitable[float]]:
    """The network is gone for a while without a word; then what it left half-open is reset."""

    async def befall(scene: Scene) -> float:
        for relay in relays(scene):
            relay.swallow()
        seconds = scene.rng.uniform(0.5, 2)
        await asyncio.sleep(seconds)
        for relay in relays(scene):
            relay.mend()
        return seconds

    return befall


async def _restart_redis(scene: Scene) -> float:
    redis = scene.cluster.redis
    await asyncio.to_thread(redis.kill)
    seconds = scene.rng.uniform(0, 1.5)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(redis.start)
    return seconds + 0.5


async def _empty_redis(scene: Scene) -> float:
    redis = scene.cluster.redis
    await asyncio.to_thread(redis.kill)
    redis.forget()
    seconds = scene.rng.uniform(0, 1)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(redis.start)
    return seconds + 0.5


async def _stop_postgresql(scene: Scene) -> float:
    postgresql = scene.cluster.postgresql
    await asyncio.to_thread(postgresql.stop)
    seconds = scene.rng.uniform(0, 1)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(postgresql.start)
    return seconds + 1


async def _crash_postgresql(scene: Scene) -> float:
    postgresql = scene.cluster.postgresql
    await asyncio.to_thread(postgresql.kill)
    seconds = scene.rng.uniform(0, 1)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(postgresql.start)
    return seconds + 1


async def _redis_away(scene: Scene) -> float:
    redis = scene.cluster.redis
    await asyncio.to_thread(redis.kill)
    await asyncio.sleep(AWAY_SECONDS)
    await asyncio.to_thread(redis.start)
    return AWAY_SECONDS


async def _postgresql_away(scene: Scene) -> float:
    postgresql = scene.cluster.postgresql
    await asyncio.to_thread(postgresql.stop)
    await asyncio.sleep(AWAY_SECONDS)
    await asyncio.to_thread(postgresql.start)
    return AWAY_SECONDS


def _of_victim(relays: Relays) -> Relays:
    """Only those of the victim, which the others go on without."""

    def chosen(scene: Scene) -> Sequence[Relay]:
        own = {scene.victim.redis, scene.victim.postgresql}
        return [relay for relay in relays(scene) if relay in own]

    return chosen


FAULTS: Final[Sequence[Fault]] = (
    Fault("kill -9 of the owner", _kill, OWNER_DIED, of_owner=True),
    Fault("SIGSTOP beyond the lease, then SIGCONT", _pause, OWNER_DIED, of_owner=True),
    Fault("connections to Redis cut", _cut(_redis)),
    Fault("connections to Redis slow", _delay(_redis)),
    Fault("bytes from and to Redis split", _split(_redis)),
    Fault("network to Redis silent, then reset", _swallow(_redis)),
    Fault("the owner's connections to Redis half-open", _strand(_of_victim(_redis))),
    Fault("connections to PostgreSQL cut", _cut(_postgresql)),
    Fault("connections to PostgreSQL slow", _delay(_postgresql)),
    Fault("bytes from and to PostgreSQL split", _split(_postgresql)),
    # Silence may outlast a short lease; then the others may rightly bury the owner.
    Fault("network to PostgreSQL silent, then reset", _swallow(_postgresql), OWNER_DIED),
    Fault(
        "the owner's connections to PostgreSQL half-open",
        _strand(_of_victim(_postgresql)),
        OWNER_DIED,
        of_owner=True,
    ),
    Fault("Redis killed and started, appendfsync always", _restart_redis),
    Fault("Redis killed and started empty", _empty_redis, STORE_FAILED, loses_log=True),
    Fault("PostgreSQL stopped and started", _stop_postgresql, OWNER_DIED),
    Fault("PostgreSQL crashed and started", _crash_postgresql, OWNER_DIED),
    Fault("Redis away for longer than runs wait", _redis_away, STORE_FAILED),
    Fault("PostgreSQL away for longer than runs wait", _postgresql_away, OWNER_DIED | STORE_FAILED),
)


def together(*faults: Fault) -> Fault:
    """All of ``faults`` at once, as one."""

    async def befall(scene: Scene) -> float:
        return max(await asyncio.gather(*(fault.befall(scene) for fault in faults)))

    return Fault(
        " and ".join(fault.name for fault in faults),
        befall,
        frozenset().union(*(fault.ends for fault in faults)),
        of_owner=all(fault.of_owner for fault in faults if fault.ends),
        loses_log=any(fault.loses_log for fault in faults),
    )


def named(words: str) -> Fault:
    """The one fault whose name begins so."""
    (fault,) = [fault for fault in FAULTS if fault.name.startswith(words)]
    return fault
