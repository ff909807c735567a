"""Tails of a log on Redis keep up with it without the help of a poll."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from reattach.domain.errors import FencedError, LogLostError, StoreUnavailableError
from reattach.domain.ids import Seq, Token
from reattach.log.base import Tail
from reattach.log.redis.client import WaitPolicy, client_for
from reattach.log.redis.log import RedisLog
from reattach.log.redis.scripts import READ, STATE_MANY, Script
from reattach.log.redis.subscriber import Subscriber
from reattach.testing.conformance.log_reader import until
from reattach.testing.conformance.log_samples import append
from reattach.testing.programs.redis import RedisServer
from reattach.testing.programs.relay import Relay

WAIT_SECONDS = 30.0
NEVER_SECONDS = 3600.0

Call = Callable[[], Awaitable[Any]]
Around = Callable[[Call], Awaitable[Any]]


@pytest.fixture
async def owner(redis: RedisServer) -> AsyncIterator[RedisLog]:
    async with log_at(redis) as log:
        await log.open("run", Token(1))
        yield log


@pytest.fixture
async def other(redis: RedisServer) -> AsyncIterator[RedisLog]:
    async with log_at(redis) as log:
        yield log


@pytest.fixture
async def observer(redis: RedisServer) -> AsyncIterator[Any]:
    """A separate connection to the server."""
    async with aclosing(Redis.from_url(redis.url)) as observer:
        yield observer


@asynccontextmanager
async def log_at(redis: RedisServer) -> AsyncIterator[RedisLog]:
    """Connect a log as a separate process does, and never poll."""
    log = await RedisLog.connect(redis.url, poll_seconds=NEVER_SECONDS)
    async with aclosing(log):
        yield log


@asynccontextmanager
async def subscriber_at(relay: Relay, *, answer_seconds: float) -> AsyncIterator[Subscriber]:
    server = client_for(relay.url.replace("http", "redis"), WaitPolicy(answer_seconds))
    subscriber = Subscriber(server, lambda _channel: None)
    async with aclosing(server), aclosing(subscriber):
        yield subscriber


def intercept(
    log: RedisLog, script: Script, around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pass every call of the script to ``around``."""
    server = log._client
    execute = server._execute

    async def intercepted(*command: Any) -> Any:
        if command[0] == "EVALSHA" and command[1] == script.sha:
            return await around(lambda: execute(*command))
        return await execute(*command)

    monkeypatch.setattr(server, "_execute", intercepted)


def hold_answers(was_answered: asyncio.Event, may_arrive: asyncio.Event) -> Around:
    """Hold answers back until ``may_arrive`` is set."""

    async def hold(call: Call) -> Any:
        answer = await call()
        was_answered.set()
        await may_arrive.wait()
        return answer

    return hold


def lose_calls(times: int) -> Around:
    """Lose this many calls together with their connections."""
    left = times

    async def lose(call: Call) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise RedisConnectionError("It was cut.")
        return await call()

    return lose


def lose_notifications(log: RedisLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop the notifications of all runs that are followed from now on."""
    monkeypatch.setattr(log.follower, "_on_notification", lambda _run, _packed: None)


async def is_at(tail: Tail, seq: int) -> None:
    await until(tail, lambda: tail.last_seq >= seq or tail.ended)
    assert tail.failure is None
    assert tail.last_seq == seq


@pytest.mark.promise("P4")
@pytest.mark.parametrize("script", [STATE_MANY, READ], ids=["state", "read"])
@pytest.mark.parametrize("times", [1, 3])
async def test_missed_frames_are_read_even_if_that_read_is_cut_off_too(
    owner: RedisLog,
    other: RedisLog,
    observer: Any,
    *,
    script: Script,
    times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with other.follow("run") as tail:
        await append(owner, "run", Token(1), 1, [b"a", b"b"])
        await is_at(tail, 2)
        intercept(other, script, lose_calls(times), monkeypatch)
        assert await observer.client_kill_filter(_type="pubsub") == 1
        await append(owner, "run", Token(1), 3, [b"c"], close=True)
        await until(tail, lambda: tail.closed)
        assert tail.last_seq == 3


@pytest.mark.promise("P4")
async def test_a_close_during_a_read_into_the_tail_is_not_missed(
    owner: RedisLog, other: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_read, may_arrive = asyncio.Event(), asyncio.Event()
    lose_notifications(other, monkeypatch)
    async with asyncio.timeout(WAIT_SECONDS), other.follow("run") as tail:
        await append(owner, "run", Token(1), 1, [b"a"])
        intercept(other, READ, hold_answers(was_read, may_arrive), monkeypatch)
        await other.head("run")
        await was_read.wait()
        await append(owner, "run", Token(1), 2, [b"b"], close=True)
        await other.head("run")
        assert tail.last_seq == 0
        may_arrive.set()
        await until(tail, lambda: tail.closed)
        assert tail.last_seq == 2


@pytest.mark.promise("P4")
async def test_a_close_without_events_during_a_gap_is_not_missed(
    owner: RedisLog, other: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_read, may_arrive = asyncio.Event(), asyncio.Event()
    follower = other.follower
    handle = follower._on_notification
    received: list[bytes] = []
    all_received = asyncio.Event()

    def drop_the_first(run: Any, packed: bytes) -> None:
        if received:
            handle(run, packed)
        received.append(packed)
        if len(received) == 3:
            all_received.set()

    monkeypatch.setattr(follower, "_on_notification", drop_the_first)
    async with asyncio.timeout(WAIT_SECONDS), other.follow("run") as tail:
        intercept(other, READ, hold_answers(was_read, may_arrive), monkeypatch)
        await append(owner, "run", Token(1), 1, [b"a"])
        await append(owner, "run", Token(1), 2, [b"b"])
        await was_read.wait()
        await append(owner, "run", Token(1), 3, [], close=True)
        await all_received.wait()
        may_arrive.set()
        await until(tail, lambda: tail.closed)
        assert tail.last_seq == 2


@pytest.mark.promise("P5")
async def test_replaced_frames_are_detected_even_if_the_read_is_cut_off(
    owner: RedisLog, other: RedisLog, observer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(owner, "run", Token(1), 1, [b"a", b"b"])
    lose_notifications(other, monkeypatch)
    async with other.follow("run") as tail:
        await is_at(tail, 2)
        await observer.flushall()
        await owner.open("run", Token(2))
        await append(owner, "run", Token(2), 1, [b"x", b"y"])
        intercept(other, READ, lose_calls(1), monkeypatch)
        await other.head("run")
        await until(tail, lambda: tail.ended)
        assert isinstance(tail.failure, LogLostError)
        assert tail.last_seq == 2


@pytest.mark.promise("P4")
async def test_a_subscription_just_after_a_cut_uses_the_next_connection(
    redis: RedisServer, relay: Relay, observer: Any
) -> None:
    messages: asyncio.Queue[bytes] = asyncio.Queue()
    async with (
        asyncio.timeout(WAIT_SECONDS),
        subscriber_at(relay, answer_seconds=WAIT_SECONDS) as subscriber,
    ):
        await subscriber.subscribe(b"a", messages.put_nowait)
        connection = subscriber._connection
        assert connection is not None
        relay.delay_seconds = 0.1  # Commands on the old connection overlap with the next one.
        relay.cut()
        while connection.is_connected:
            await asyncio.sleep(0)
        await subscriber.subscribe(b"b", messages.put_nowait)
        relay.delay_seconds = 0.0
        await subscriber.subscribe(b"c", messages.put_nowait)
        for channel in b"a", b"b", b"c":
            assert await observer.publish(channel, channel) == 1
            assert await messages.get() == channel
        assert relay.connections == 2


async def test_unsubscribing_ends_the_wait_for_the_confirmation(
    relay: Relay,
) -> None:
    async with (
        asyncio.timeout(WAIT_SECONDS),
        subscriber_at(relay, answer_seconds=NEVER_SECONDS) as subscriber,
    ):
        await subscriber.subscribe(b"a", lambda _message: None)
        relay.pause()
        waiting = asyncio.create_task(subscriber.subscribe(b"b", lambda _message: None))
        await asyncio.sleep(0)
        subscriber.unsubscribe(b"b")
        with pytest.raises(StoreUnavailableError):
            await waiting
        relay.resume()
        await subscriber.subscribe(b"c", lambda _message: None)
        assert relay.connections == 1


@pytest.mark.promise("P4")
async def test_a_listener_that_raises_does_not_end_the_notifications(
    relay: Relay, observer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_exception_handler", reported.append)
    messages: asyncio.Queue[bytes] = asyncio.Queue()

    def listener(packed: bytes) -> None:
        if packed == b"broken":
            raise RuntimeError("A defect.")
        messages.put_nowait(packed)

    async with (
        asyncio.timeout(WAIT_SECONDS),
        subscriber_at(relay, answer_seconds=WAIT_SECONDS) as subscriber,
    ):
        await subscriber.subscribe(b"a", listener)
        await observer.publish(b"a", b"broken")
        await subscriber.subscribe(b"b", listener)
        for channel in b"a", b"b":
            assert await observer.publish(channel, channel) == 1
            assert await messages.get() == channel
        assert relay.connections == 2
    assert [str(each["exception"]) for each in reported] == ["A defect."]


@pytest.mark.promise("P3", "P5")
@pytest.mark.parametrize("is_large", [False, True])
async def test_the_end_of_a_log_is_not_read_before_the_tail_has_it_if_notifications_are_late(
    owner: RedisLog,
    other: RedisLog,
    monkeypatch: pytest.MonkeyPatch,
    is_large: bool,
) -> None:
    """C5: a cursor before the tail of a log over 4 MiB, and one at its end."""
    lose_notifications(other, monkeypatch)
    count = 9 if is_large else 2
    frame = b"x" * 600_000 if is_large else b"x"
    for seq in range(1, count + 1):
        await append(owner, "run", Token(1), seq, [frame])
    async with other.follow("run") as tail:
        assert tail.first_seq == (count + 1 if is_large else 1)
        await append(owner, "run", Token(1), count + 1, [b"stop", b"usage"], close=True)
        assert tail.last_seq == count
        for after in range(0 if is_large else count, count + 2):
            piece = await other.read("run", Seq(after), max_bytes=2**40, max_events=2**40)
            assert piece.last_seq == count + 2
            assert tail.last_seq == count + 2
            assert tail.closed


async def test_frames_that_cannot_be_read_into_the_tail_are_not_returned(
    owner: RedisLog, other: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C5: the store answers the first read, and none of the reads into the tail."""
    lose_notifications(other, monkeypatch)
    await append(owner, "run", Token(1), 1, [b"first"])
    async with other.follow("run") as tail:
        await append(owner, "run", Token(1), 2, [b"stop"], close=True)
        calls = 0

        async def answer_once(call: Call) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                return await call()
            raise RedisConnectionError("It was cut.")

        intercept(other, READ, answer_once, monkeypatch)
        with pytest.raises(StoreUnavailableError):
            await other.read("run", Seq(1), max_bytes=100, max_events=10)
        assert not tail.closed


@pytest.mark.promise("P3")
async def test_an_append_that_closes_the_tail_during_a_catch_up_is_no_failure(
    owner: RedisLog,
) -> None:
    """C5: the owner's append is answered between a reader's read and the one for the tail."""
    await append(owner, "run", Token(1), 1, [b"first"])
    async with owner.follow("run") as tail:
        follower = owner.follower
        run = follower.local_run("run")
        assert run is not None
        waiting = asyncio.create_task(follower.catch_up_to(run, Seq(2)))
        await asyncio.sleep(0)
        assert run.is_behind
        follower.note_appended(run, Seq(2), [b"stop"], close=True)
        await waiting
        assert tail.closed


async def test_a_reader_waits_for_the_newer_of_two_catch_ups(
    owner: RedisLog, other: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C5: a second read begins between the end of the first and the reader that waits for it."""
    lose_notifications(other, monkeypatch)
    await append(owner, "run", Token(1), 1, [b"first"])
    async with asyncio.timeout(WAIT_SECONDS), other.follow("run") as tail:
        follower = other.follower
        run = follower.local_run("run")
        assert run is not None
        await append(owner, "run", Token(1), 2, [b"second"])
        waiting = asyncio.create_task(follower.catch_up_to(run, Seq(2)))
        await asyncio.sleep(0)
        assert run.catch_up_task is not None
        run.catch_up_task.add_done_callback(lambda _: follower.start_catch_up(run))
        await waiting
        assert tail.last_seq == 2


async def test_a_log_that_this_process_writes_is_known_to_go_on_while_redis_answers(
    owner: RedisLog, other: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert owner.goes_on_after("run", Seq(0))
    await append(owner, "run", Token(1), 1, [b"one", b"two"])
    assert [owner.goes_on_after("run", Seq(seq)) for seq in range(4)] == [True, True, True, False]
    assert not other.goes_on_after("run", Seq(0))
    later = time.monotonic() + 1
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: later)
        assert not owner.goes_on_after("run", Seq(0))
        await append(owner, "run", Token(1), 3, [b"three"])
        assert owner.goes_on_after("run", Seq(3))
    await append(owner, "run", Token(1), 4, [], close=True)
    assert not owner.goes_on_after("run", Seq(3))


async def test_a_log_that_another_process_has_taken_over_is_not_known_to_go_on(
    owner: RedisLog, other: RedisLog
) -> None:
    await append(owner, "run", Token(1), 1, [b"one"])
    await other.open("run", Token(2))
    with pytest.raises(FencedError):
        await append(owner, "run", Token(1), 2, [b"two"])
    assert not owner.goes_on_after("run", Seq(1))
    assert other.goes_on_after("run", Seq(1))


async def test_redis_has_just_answered_until_it_fails(
    redis: RedisServer, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await RedisLog.connect(relay.url.replace("http", "redis"), answer_seconds=0.5)
    async with aclosing(log):
        await log.find("none")
        assert log.has_just_answered()
        later = time.monotonic() + 1
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: later)
            assert not log.has_just_answered()
        relay.pause()
        with pytest.raises(StoreUnavailableError):
            await log.find("none")
        assert not log.has_just_answered()
        relay.resume()
        async with asyncio.timeout(WAIT_SECONDS):
            while not log.has_just_answered():
                with suppress(StoreUnavailableError):
                    await log.find("none")
