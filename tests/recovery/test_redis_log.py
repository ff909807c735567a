"""The log on Redis under faults of Redis, of the network and of processes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from reattach.domain.errors import (
    FencedError,
    LogLostError,
    LogNotFoundError,
    SeqMismatchError,
    StoreUnavailableError,
)
from reattach.domain.ids import Seq, Token
from reattach.log.base import Head, Tail
from reattach.log.redis.log import RedisLog
from reattach.testing.conformance.log_reader import LARGE, follow, until
from reattach.testing.conformance.log_samples import append
from reattach.testing.programs.redis import RedisServer
from reattach.testing.programs.relay import Relay

WAIT_SECONDS = 30.0
NEVER_SECONDS = 3600.0
FRAMES = [b"data: %d %s\n\n" % (seq, b"x" * (seq % 50)) for seq in range(1, 301)]


@asynccontextmanager
async def log_at(
    place: RedisServer | Relay, *, poll_seconds: float = NEVER_SECONDS, answer_seconds: float = 3.0
) -> AsyncIterator[RedisLog]:
    """Connect a log as a separate process does."""
    url = place.url if isinstance(place, RedisServer) else place.url.replace("http", "redis")
    log = await RedisLog.connect(url, poll_seconds=poll_seconds, answer_seconds=answer_seconds)
    async with aclosing(log):
        yield log


@asynccontextmanager
async def observer_of(redis: RedisServer) -> AsyncIterator[Any]:
    """Open a separate connection to the server."""
    async with aclosing(Redis.from_url(redis.url)) as observer:
        yield observer


async def append_with_retries(
    log: RedisLog, first_seq: int, frames: Sequence[bytes], *, close: bool = False
) -> int:
    """Append with retries, as the owner of a run does, and return the number of retries."""
    failures = 0
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                await append(log, "run", Token(1), first_seq, frames, close=close)
            except StoreUnavailableError:
                failures += 1
                await asyncio.sleep(0.02)
            else:
                return failures


async def append_all(log: RedisLog, *, after: Callable[[int], None] = lambda seq: None) -> int:
    """Append all frames one by one, close the log, and return the number of retries."""
    failures = 0
    for seq, frame in enumerate(FRAMES, 1):
        failures += await append_with_retries(log, seq, [frame], close=seq == len(FRAMES))
        after(seq)
    return failures


async def follow_with_retries(log: RedisLog) -> list[bytes]:
    """Follow with retries, as a client does."""
    while True:
        try:
            return await follow(log, "run", 0)
        except StoreUnavailableError:
            await asyncio.sleep(0.02)


async def is_at(tail: Tail, seq: int) -> None:
    await until(tail, lambda: tail.last_seq >= seq or tail.ended)
    assert tail.failure is None
    assert tail.last_seq == seq


async def all_of(log: RedisLog) -> bytes:
    return (await log.read("run", Seq(0), max_bytes=LARGE, max_events=LARGE)).frames


@pytest.mark.promise("P4")
async def test_each_process_follows_the_runs_of_the_other(redis: RedisServer) -> None:
    async with log_at(redis) as one, log_at(redis) as two:
        await one.open("a", Token(1))
        await two.open("b", Token(1))
        readers = [
            asyncio.create_task(follow(log, run_id, 0)) for log in (one, two) for run_id in "ab"
        ]
        for start in range(0, 300, 3):
            close = start == 297
            await append(one, "a", Token(1), start + 1, FRAMES[start : start + 3], close=close)
            await append(two, "b", Token(1), start + 1, FRAMES[start : start + 3], close=close)
            if start % 30 == 0:
                readers.append(asyncio.create_task(follow(two, "a", 0)))
        for reader in readers:
            assert await reader == FRAMES


@pytest.mark.promise("P13")
async def test_the_number_of_connections_does_not_depend_on_readers_or_runs(
    redis: RedisServer,
) -> None:
    async with (
        log_at(redis) as owner,
        log_at(redis) as other,
        observer_of(redis) as observer,
        AsyncExitStack() as readers,
    ):
        runs = [f"run-{number}" for number in range(50)]
        for run_id in runs:
            await owner.open(run_id, Token(1))
        tails = [
            await readers.enter_async_context(log.follow(run_id))
            for run_id in runs
            for log in (owner, other)
            for _ in range(2)
        ]

        async def append_to(run_id: str) -> None:
            for seq in range(1, 21):
                await append(owner, run_id, Token(1), seq, FRAMES[seq - 1 : seq])
                await other.read(run_id, Seq(0), max_bytes=LARGE, max_events=LARGE)
                await other.head(run_id)

        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
            for run_id in runs:
                group.create_task(append_to(run_id))
        for tail in tails:
            await is_at(tail, 20)
        clients = [one for one in await observer.client_list() if one["name"] == "reattach"]
        assert len([one for one in clients if int(one["sub"])]) == 1
        assert len(clients) <= 2 * 5 + 1


@pytest.mark.promise("P13")
@pytest.mark.parametrize("poll_seconds", [NEVER_SECONDS, 0.1])
async def test_between_events_only_the_poll_sends_commands(
    redis: RedisServer, poll_seconds: float
) -> None:
    async with (
        log_at(redis) as owner,
        log_at(redis, poll_seconds=poll_seconds) as other,
        observer_of(redis) as observer,
        AsyncExitStack() as readers,
    ):
        for number in range(50):
            await owner.open(f"run-{number}", Token(1))
        for number in range(200):
            await readers.enter_async_context(other.follow(f"run-{number % 50}"))
        await observer.config_resetstat()
        await asyncio.sleep(0.55)
        calls = {
            name.removeprefix("cmdstat_"): numbers["calls"]
            for name, numbers in (await observer.info("commandstats")).items()
        }
        polls = calls.get("evalsha", 0) + calls.get("eval", 0)
        assert polls <= (0 if poll_seconds == NEVER_SECONDS else 6)
        assert not calls.keys() - {"evalsha", "eval", "hmget", "exists", "ping", "config|resetstat"}
        assert calls.get("hmget", 0) <= 50 * polls


@pytest.mark.promise("P7")
async def test_a_zombie_owner_is_refused_and_its_readers_get_the_new_owners_frames(
    redis: RedisServer,
) -> None:
    async with log_at(redis) as zombie, log_at(redis) as heir:
        await zombie.open("run", Token(1))
        async with zombie.follow("run") as tail:
            await append(zombie, "run", Token(1), 1, FRAMES[:3])
            assert (await heir.open("run", Token(2))).head == Head(Seq(1), Seq(3), closed=False)
            await append(heir, "run", Token(2), 4, FRAMES[3:6])
            with pytest.raises(FencedError):
                await append(zombie, "run", Token(1), 4, [b"other text"])
            await append(heir, "run", Token(2), 7, FRAMES[6:8], close=True)
            await is_at(tail, 8)
            await until(tail, lambda: tail.closed)
        assert await follow(zombie, "run", 0) == FRAMES[:8]


@pytest.mark.promise("P7")
async def test_readers_at_a_silent_zombie_get_the_end(
    redis: RedisServer,
) -> None:
    async with log_at(redis, poll_seconds=0.05) as zombie, log_at(redis) as heir:
        await zombie.open("run", Token(1))
        async with zombie.follow("run") as tail:
            await append(zombie, "run", Token(1), 1, FRAMES[:3])
            await heir.open("run", Token(2))
            await append(heir, "run", Token(2), 4, FRAMES[3:6], close=True)
            await until(tail, lambda: tail.closed)
            assert tail.last_seq == 6


@pytest.mark.promise("P2")
@pytest.mark.promise("P4")
async def test_a_restart_with_aof_loses_and_duplicates_nothing() -> None:
    redis = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    try:
        async with log_at(redis) as owner, log_at(redis) as other:
            await owner.open("run", Token(1))
            readers = [
                asyncio.create_task(follow(log, "run", after))
                for log in (owner, other)
                for after in (0, 50)
            ]

            def crash(seq: int) -> None:
                if seq in {100, 200}:
                    redis.kill()
                    asyncio.get_running_loop().call_later(0.2, redis.start)

            assert await append_all(owner, after=crash) > 0
            for number, reader in enumerate(readers):
                assert await reader == FRAMES[50 * (number % 2) :]
        async with log_at(redis) as late:
            assert await follow(late, "run", 0) == FRAMES
    finally:
        redis.close()


@pytest.mark.promise("P5")
async def test_a_restart_without_data_fails_tails_and_replaces_no_frames(
    redis: RedisServer,
) -> None:
    async with log_at(redis) as owner, log_at(redis) as other:
        await owner.open("run", Token(1))
        async with owner.follow("run") as own_tail, other.follow("run") as tail:
            await append(owner, "run", Token(1), 1, FRAMES[:5])
            await is_at(tail, 5)
            redis.kill()
            with pytest.raises(StoreUnavailableError):
                await append(owner, "run", Token(1), 6, FRAMES[5:6])
            assert not own_tail.ended
            assert not tail.ended
            redis.start()
            await until(tail, lambda: tail.ended)
            with pytest.raises(LogNotFoundError):
                await append(owner, "run", Token(1), 6, FRAMES[5:6])
            for lost in own_tail, tail:
                assert isinstance(lost.failure, LogLostError)
                assert lost.failure.last_seq == 5
                assert lost.last_seq == 5
        for log in owner, other:
            with pytest.raises(LogNotFoundError):
                await log.head("run")
        assert (await owner.open("run", Token(2), first_seq=Seq(1000))).head == Head(
            Seq(1000), Seq(999), closed=False
        )
        await append(owner, "run", Token(2), 1000, [b"the end"], close=True)
        assert await other.head("run") == Head(Seq(1000), Seq(1000), closed=True)
        assert await follow(other, "run", 999) == [b"the end"]


@pytest.mark.promise("P5")
async def test_readers_of_a_log_that_is_created_again_get_log_lost(redis: RedisServer) -> None:
    async with log_at(redis) as owner, log_at(redis) as other:
        await owner.open("run", Token(1))
        async with other.follow("run") as tail:
            await append(owner, "run", Token(1), 1, FRAMES[:2])
            await is_at(tail, 2)
            async with observer_of(redis) as observer:
                await observer.flushall()
            async with log_at(redis) as heir:
                await heir.open("run", Token(2))
                await append(heir, "run", Token(2), 1, [b"a", b"b", b"c", b"d"])
            await until(tail, lambda: tail.ended)
            assert isinstance(tail.failure, LogLostError)
            assert tail.last_seq == 2


@pytest.mark.promise("P5")
async def test_a_failover_to_a_lagging_replica_shows_no_other_frames() -> None:
    primary = RedisServer(tcp=True)
    replica = RedisServer("--replicaof", "127.0.0.1", str(primary.port))
    try:
        with Relay(primary.socket_path) as relay:
            async with (
                log_at(relay) as owner,
                log_at(relay) as other,
                observer_of(primary) as at_primary,
                observer_of(replica) as at_replica,
            ):
                await owner.open("run", Token(1))
                async with owner.follow("run") as own_tail, other.follow("run") as tail:
                    await append(owner, "run", Token(1), 1, FRAMES[:5])
                    async with asyncio.timeout(WAIT_SECONDS):
                        while not await at_replica.exists("reattach:{run}:log"):
                            await at_primary.execute_command("WAIT", 1, 1000)
                    await at_replica.execute_command("REPLICAOF", "NO", "ONE")
                    await append(owner, "run", Token(1), 6, FRAMES[5:8])
                    await is_at(tail, 8)
                    # The new primary gets other frames before anybody reconnects.
                    async with log_at(replica) as heir:
                        assert (await heir.open("run", Token(2))).head == Head(
                            Seq(1), Seq(5), closed=False
                        )
                        await append(heir, "run", Token(2), 6, [b"other"] * 5, close=True)
                    relay.target = replica.socket_path
                    relay.cut()
                    await until(tail, lambda: tail.ended)
                    assert isinstance(tail.failure, LogLostError)
                    assert tail.last_seq == 8
                    with pytest.raises(FencedError):
                        await append(owner, "run", Token(1), 9, FRAMES[8:9])
                    await until(own_tail, lambda: own_tail.ended)
                    assert isinstance(own_tail.failure, LogLostError)
                    assert own_tail.last_seq == 8
    finally:
        primary.close()
        replica.close()


@pytest.mark.promise("P5")
async def test_an_owner_whose_frames_were_lost_gets_a_mismatch_and_log_lost(
    redis: RedisServer,
) -> None:
    async with log_at(redis) as owner, observer_of(redis) as observer:
        await owner.open("run", Token(1))
        async with owner.follow("run") as tail:
            await append(owner, "run", Token(1), 1, FRAMES[:1])
            kept = await observer.dump("reattach:{run}:log")
            state = await observer.dump("reattach:{run}:head")
            await append(owner, "run", Token(1), 2, FRAMES[1:4])
            await observer.restore("reattach:{run}:log", 0, kept, replace=True)
            await observer.restore("reattach:{run}:head", 0, state, replace=True)
            with pytest.raises(SeqMismatchError) as caught:
                await append(owner, "run", Token(1), 5, FRAMES[4:5])
            assert caught.value.last_seq == 1
            assert isinstance(tail.failure, LogLostError)
            assert tail.failure.last_seq == 4


@pytest.mark.promise("P1")
async def test_a_command_on_a_kept_connection_that_was_killed_is_sent_on_a_new_one(
    redis: RedisServer,
) -> None:
    async with log_at(redis) as log, observer_of(redis) as observer:
        writer = await log.open("run", Token(1))
        for seq in range(1, 4):
            mine = [one["id"] for one in await observer.client_list() if one["name"] == "reattach"]
            for client_id in mine:
                await observer.client_kill_filter(_id=client_id)
            await writer.append(Seq(seq), FRAMES[seq - 1 : seq])
        assert (await log.head("run")).last_seq == 3


@pytest.mark.promise("P1")
@pytest.mark.parametrize("seed", range(4))
async def test_cut_connections_lose_and_duplicate_nothing(
    redis: RedisServer, relay: Relay, seed: int
) -> None:
    dice = random.Random(seed)
    async with log_at(relay) as owner, log_at(relay) as other:
        await owner.open("run", Token(1))
        readers = [asyncio.create_task(follow_with_retries(log)) for log in (owner, other)]

        def disturb(seq: int) -> None:
            if dice.random() < 0.1:
                relay.cut_after(dice.randint(1, 400))
            if dice.random() < 0.02:
                relay.cut()
            relay.piece_bytes = dice.choice([1, 7, 64 * 1024])

        await append_all(owner, after=disturb)
        for reader in readers:
            assert await reader == FRAMES
        assert relay.connections > 10
    async with log_at(redis) as late:
        assert await follow(late, "run", 0) == FRAMES
        assert await all_of(late) == b"".join(FRAMES)


@pytest.mark.promise("P4")
async def test_readers_catch_up_when_the_subscribers_connection_is_killed(
    redis: RedisServer,
) -> None:
    async with log_at(redis) as owner, log_at(redis) as other, observer_of(redis) as observer:
        await owner.open("run", Token(1))
        async with other.follow("run") as tail:
            for seq in range(1, 31):
                if seq % 10 == 0:
                    assert await observer.client_kill_filter(_type="pubsub") == 1
                await append(owner, "run", Token(1), seq, [FRAMES[seq - 1]])
                if seq % 10 == 9:
                    await is_at(tail, seq)
            await is_at(tail, 30)


@pytest.mark.promise("P4")
async def test_a_gap_in_the_notifications_is_filled(redis: RedisServer, relay: Relay) -> None:
    async with log_at(redis) as owner, log_at(relay) as other:
        await owner.open("run", Token(1))
        async with other.follow("run") as tail:
            await append(owner, "run", Token(1), 1, FRAMES[:2])
            await is_at(tail, 2)
            relay.swallow()
            await append(owner, "run", Token(1), 3, FRAMES[2:5])
            lost_bytes = relay.bytes_down
            async with asyncio.timeout(WAIT_SECONDS):
                while relay.bytes_down == lost_bytes and tail.last_seq == 2:
                    await append(
                        owner, "run", Token(1), (await owner.head("run")).last_seq + 1, [b"x"]
                    )
            relay.resume()
            last_seq = (await owner.head("run")).last_seq + 1
            await append(owner, "run", Token(1), last_seq, FRAMES[5:6], close=True)
            await is_at(tail, last_seq)
            assert (
                await all_of(owner) == tail.slice(Seq(0), max_bytes=LARGE, max_events=LARGE).frames
            )


@pytest.mark.promise("P4")
async def test_the_poll_finds_lost_notifications(redis: RedisServer, relay: Relay) -> None:
    async with (
        log_at(redis) as owner,
        log_at(relay, poll_seconds=0.1, answer_seconds=0.3) as other,
    ):
        await owner.open("run", Token(1))
        async with other.follow("run") as tail:
            await append(owner, "run", Token(1), 1, FRAMES[:2])
            await is_at(tail, 2)
            relay.swallow()
            await append(owner, "run", Token(1), 3, FRAMES[2:5], close=True)
            with pytest.raises(StoreUnavailableError):
                await other.head("run")
            assert tail.last_seq == 2
            assert not tail.ended
            relay.resume()
            await until(tail, lambda: tail.closed)
            assert tail.last_seq == 5


async def test_a_paused_redis_is_unavailable_and_tails_wait(
    redis: RedisServer,
) -> None:
    async with (
        log_at(redis, answer_seconds=0.3, poll_seconds=0.1) as owner,
        log_at(redis, answer_seconds=0.3, poll_seconds=0.1) as other,
    ):
        await owner.open("run", Token(1), aliases=["alias"])
        async with other.follow("run") as tail, owner.follow("run") as own_tail:
            await append(owner, "run", Token(1), 1, FRAMES[:2])
            await is_at(tail, 2)
            redis.pause()
            try:
                for use in (
                    append(owner, "run", Token(1), 3, FRAMES[2:4]),
                    owner.open("other", Token(1)),
                    owner.head("run"),
                    owner.find("alias"),
                    other.read("run", Seq(5), max_bytes=1, max_events=1),
                    other.delete("other"),
                ):
                    async with asyncio.timeout(5):
                        with pytest.raises(StoreUnavailableError):
                            await use
            finally:
                redis.resume()
            await append_with_retries(owner, 3, FRAMES[2:4])
            await append_with_retries(owner, 5, FRAMES[4:6], close=True)
            for each in tail, own_tail:
                await until(each, lambda each=each: each.closed)  # type: ignore[misc]
                assert each.last_seq == 6
        assert await follow(other, "run", 0) == FRAMES[:6]


async def test_a_read_only_redis_is_unavailable_for_writes(redis: RedisServer) -> None:
    async with log_at(redis) as log, observer_of(redis) as observer:
        await log.open("run", Token(1))
        await append(log, "run", Token(1), 1, FRAMES[:2])
        await observer.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreUnavailableError):
            await append(log, "run", Token(1), 3, FRAMES[2:3])
        with pytest.raises(StoreUnavailableError):
            await log.open("run", Token(2))
        await observer.execute_command("REPLICAOF", "NO", "ONE")
        await append(log, "run", Token(1), 3, FRAMES[2:3])
        assert await all_of(log) == b"".join(FRAMES[:3])


@pytest.mark.promise("P2")
async def test_with_wait_replicas_an_append_needs_the_replica() -> None:
    primary = RedisServer(tcp=True)
    replica = RedisServer("--replicaof", "127.0.0.1", str(primary.port))
    try:
        log = await RedisLog.connect(primary.url, wait_replicas=1, answer_seconds=1)
        async with aclosing(log), observer_of(replica) as at_replica:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    try:
                        await log.open("run", Token(1))
                        break
                    except StoreUnavailableError:
                        await asyncio.sleep(0.05)
            await append_with_retries(log, 1, FRAMES[:2])
            assert await at_replica.xlen("reattach:{run}:log") == 1
            async with log.follow("run") as tail:
                replica.pause()
                try:
                    for _ in range(2):
                        with pytest.raises(StoreUnavailableError):
                            await append(log, "run", Token(1), 3, FRAMES[2:3])
                    assert tail.last_seq == 2
                finally:
                    replica.resume()
                await append_with_retries(log, 3, FRAMES[2:3])
                assert tail.last_seq == 3
            assert await at_replica.xlen("reattach:{run}:log") == 2
    finally:
        primary.close()
        replica.close()


@pytest.mark.promise("P14")
async def test_only_closed_logs_expire_and_only_after_their_retention(
    redis: RedisServer,
) -> None:
    log = await RedisLog.connect(redis.url, retention_seconds=1000, prefix="mine")
    async with aclosing(log), observer_of(redis) as observer:
        await log.open("run", Token(1), aliases=["a"])
        await append(log, "run", Token(1), 1, FRAMES[:2])
        keys = ["mine:{run}:head", "mine:{run}:log"]
        assert [await observer.ttl(key) for key in keys] == [-1, -1]
        assert await observer.ttl("mine:alias:a") > 1000
        await append(log, "run", Token(1), 3, FRAMES[2:3], close=True)
        await log.open("run", Token(2))
        for key in keys:
            assert 1000 < await observer.ttl(key) < 10_000
        assert len(await observer.keys("*")) == 3
        await log.delete("run")
        assert await observer.keys("*") == []


@pytest.mark.promise("P5")
async def test_a_log_whose_frames_were_evicted_is_not_found(redis: RedisServer) -> None:
    async with log_at(redis) as owner, observer_of(redis) as observer:
        await owner.open("run", Token(1))
        async with owner.follow("run") as tail:
            await append(owner, "run", Token(1), 1, FRAMES[:3])
            await observer.delete("reattach:{run}:log")
            with pytest.raises(LogNotFoundError):
                await append(owner, "run", Token(1), 4, FRAMES[3:4])
            assert isinstance(tail.failure, LogLostError)
        with pytest.raises(LogNotFoundError):
            await owner.head("run")
        with pytest.raises(FencedError):
            await owner.open("run", Token(0))
        assert (await owner.open("run", Token(2), first_seq=Seq(4))).head == Head(
            Seq(4), Seq(3), closed=False
        )


@pytest.mark.promise("P9")
async def test_a_log_that_expired_is_not_found_by_its_aliases(redis: RedisServer) -> None:
    async with log_at(redis) as one, log_at(redis) as two, observer_of(redis) as observer:
        await one.open("run", Token(1), aliases=["alias"])
        assert await two.find("alias") == "run"
        await observer.delete("reattach:{run}:log", "reattach:{run}:head")
        assert await two.find("alias") is None


@pytest.mark.promise("P14")
async def test_readers_of_a_log_that_another_process_deletes_get_not_found(
    redis: RedisServer,
) -> None:
    async with log_at(redis) as one, log_at(redis) as two:
        await one.open("run", Token(1))
        await one.open("closed", Token(1))
        await append(one, "closed", Token(1), 1, FRAMES[:2], close=True)
        assert await follow(two, "closed", 0) == FRAMES[:2]
        async with two.follow("run") as tail:
            await one.delete("run")
            await one.delete("closed")
            await until(tail, lambda: tail.ended)
            assert isinstance(tail.failure, LogNotFoundError)
        for run_id in "run", "closed":
            with pytest.raises(LogNotFoundError):
                await two.head(run_id)
        with pytest.raises(LogNotFoundError):
            await follow(two, "closed", 0)


async def test_an_append_succeeds_after_a_script_flush(redis: RedisServer) -> None:
    async with log_at(redis) as log, observer_of(redis) as observer:
        await log.open("run", Token(1))
        await append(log, "run", Token(1), 1, FRAMES[:1])
        await observer.script_flush()
        await append(log, "run", Token(1), 2, FRAMES[1:2])
        assert await all_of(log) == b"".join(FRAMES[:2])


async def test_a_user_with_minimal_rights_can_use_the_log(redis: RedisServer) -> None:
    async with observer_of(redis) as observer:
        await observer.acl_setuser(
            "mine",
            enabled=True,
            passwords=["+p@ss:/?#[]%"],
            keys=["mine:*"],
            channels=["mine:*"],
            commands=[
                *("+eval", "+evalsha", "+get", "+set", "+del", "+exists", "+expire", "+persist"),
                *("+hget", "+hmget", "+hset", "+unlink", "+xadd", "+xrange", "+xrevrange"),
                *("+xtrim", "+ping", "+client|setname", "+publish", "+subscribe", "+unsubscribe"),
            ],
        )
    url = f"unix://mine:p%40ss%3A%2F%3F%23%5B%5D%25@{redis.socket_path}"
    log = await RedisLog.connect(url, prefix="mine", poll_seconds=0.05)
    async with aclosing(log):
        await log.open("run", Token(1), aliases=["alias"])
        async with log.follow("run") as tail:
            await append(log, "run", Token(1), 1, FRAMES[:3], close=True)
            await is_at(tail, 3)
        other = await RedisLog.connect(url, prefix="mine")
        async with aclosing(other):
            assert await follow(other, "run", 0) == FRAMES[:3]
            await other.open("live", Token(1))
            async with log.follow("live") as tail:
                await append(other, "live", Token(1), 1, FRAMES[:3])
                await is_at(tail, 3)
            await other.trim("live", Seq(2))
            assert await log.find("alias") == "run"
            await other.delete("run")
            assert await log.find("alias") is None


async def test_aclose_ends_the_calls_that_wait_for_a_paused_redis(
    redis: RedisServer,
) -> None:
    async with log_at(redis, answer_seconds=0.5) as log:
        await log.open("run", Token(1))
        async with log_at(redis, answer_seconds=0.5) as other:
            redis.pause()
            try:
                waiting = [
                    asyncio.create_task(follow(other, "run", 0)),
                    asyncio.create_task(append(other, "run", Token(1), 1, FRAMES[:1])),
                ]
                await asyncio.sleep(0)
                async with asyncio.timeout(WAIT_SECONDS):
                    await other.aclose()
                    for task in waiting:
                        with pytest.raises(StoreUnavailableError):
                            await task
            finally:
                redis.resume()
