"""The tests of the log contract: subclass ``LogConformance`` and give it a ``store``.

>>> class MyStore(LogStore):
...     async def open_log(self):
...         return await MyLog.connect("...")
>>> class TestMyLog(LogConformance):
...     @pytest.fixture
...     def store(self):
...         return MyStore()

The tests are coroutines and need AnyIO's pytest plugin in its ``auto`` mode. For detailed
assertion messages, call ``pytest.register_assert_rewrite("reattach.testing")`` first.
``reattach.testing.conformance.log_machine`` searches for cases that these tests miss.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import pytest

from reattach.domain.errors import (
    ExpiredError,
    FencedError,
    LogClosedError,
    LogNotFoundError,
    SeqMismatchError,
    StoreUnavailableError,
)
from reattach.domain.ids import Seq, Token
from reattach.log.base import Head, Log
from reattach.testing.conformance.log_ownership import OwnershipConformance
from reattach.testing.conformance.log_reader import LARGE, WAIT_SECONDS, follow, read, until
from reattach.testing.conformance.log_samples import FRAMES, append, append_singly, write
from reattach.testing.conformance.log_writing import WritingConformance


class LogStore(ABC):
    """A place, empty at first, where one log is opened and reopened."""

    @abstractmethod
    async def open_log(self) -> Log:
        """Open the log with its stored content. The previous one was closed or has crashed."""

    async def crash(self, log: Log) -> None:
        """Leave the store as the death of the process at this moment would leave it.

        Override this for a backend that survives it. ``log`` is not used afterwards and may be
        closed.
        """
        await log.aclose()


class LogConformance(OwnershipConformance, WritingConformance):
    """Tests of every observable statement of ``reattach.log.base``."""

    @pytest.fixture
    def store(self) -> LogStore:
        """The store to test."""
        raise NotImplementedError

    @pytest.fixture
    async def log(self, store: LogStore) -> AsyncIterator[Log]:
        """The opened log of the store."""
        log = await store.open_log()
        yield log
        await log.aclose()

    async def test_a_new_log_is_empty_and_open(self, log: Log) -> None:
        assert (await log.open("run", Token(1))).head == Head(Seq(1), Seq(0), closed=False)
        assert await log.head("run") == Head(Seq(1), Seq(0), closed=False)
        assert await read(log, "run") == (1, [])

    @pytest.mark.promise("P1")
    async def test_frames_are_numbered_from_one_in_the_order_of_their_appends(
        self, log: Log
    ) -> None:
        await write(log, "run", FRAMES[:10])
        await append(log, "run", Token(1), 11, FRAMES[10:20])
        assert await log.head("run") == Head(Seq(1), Seq(20), closed=False)
        assert await read(log, "run") == (1, FRAMES[:20])
        assert (await log.open("run", Token(1))).head == Head(Seq(1), Seq(20), closed=False)

    @pytest.mark.promise("P1")
    @pytest.mark.parametrize("first_seq", [0, 1, 3, 5, 100])
    async def test_an_append_that_does_not_continue_the_log_is_refused(
        self, log: Log, first_seq: int
    ) -> None:
        await write(log, "run", FRAMES[:3])
        with pytest.raises(SeqMismatchError) as caught:
            await append(log, "run", Token(1), first_seq, [b"something else"])
        assert caught.value.last_seq == 3
        assert await read(log, "run") == (1, FRAMES[:3])

    async def test_an_append_without_frames_is_refused_unless_it_closes(self, log: Log) -> None:
        await log.open("run", Token(1))
        with pytest.raises(ValueError, match="without frames"):
            await append(log, "run", Token(1), 1, [])
        await append(log, "run", Token(1), 1, [], close=True)
        assert await log.head("run") == Head(Seq(1), Seq(0), closed=True)

    @pytest.mark.promise("P3")
    async def test_nothing_is_appended_to_a_closed_log(self, log: Log) -> None:
        await write(log, "run", FRAMES[:3], close=True)
        for frames, close in ([b"more"], False), ([b"more"], True), ([], True):
            with pytest.raises(LogClosedError):
                await append(log, "run", Token(1), 4 if frames else 2, frames, close=close)
        with pytest.raises(LogClosedError):
            await append(log, "run", Token(1), 9, [b"more"])
        assert await log.head("run") == Head(Seq(1), Seq(3), closed=True)
        assert await read(log, "run") == (1, FRAMES[:3])

    @pytest.mark.promise("P3")
    async def test_followers_see_an_append_and_its_close_as_one_change(self, log: Log) -> None:
        await log.open("run", Token(1))
        async with log.follow("run") as tail:
            seen: list[tuple[int, bool]] = []
            tail.subscribe(lambda: seen.append((tail.last_seq, tail.closed)))
            await append(log, "run", Token(1), 1, FRAMES[:3])
            await append(log, "run", Token(1), 4, FRAMES[3:5], close=True)
            await until(tail, lambda: tail.closed)
        assert set(seen) == {(3, False), (5, True)}

    @pytest.mark.promise("P1")
    async def test_submitted_appends_happen_in_order_and_report_their_outcome(
        self, log: Log
    ) -> None:
        writer = await log.open("run", Token(2))
        outcomes: asyncio.Queue[Exception | None] = asyncio.Queue()
        tasks = []
        async with asyncio.timeout(WAIT_SECONDS):
            for seq, frame in enumerate(FRAMES[:3], 1):
                done = outcomes.put_nowait
                tasks.append(writer.submit(Seq(seq), [frame], close=seq == 3, done=done))
                assert outcomes.empty(), "done is called after submit returns"
                assert await outcomes.get() is None
            refused = [
                writer.submit(Seq(4), [b"late"], done=outcomes.put_nowait)
                for writer in (
                    log.writer("run", Token(1), writer.head),
                    writer,
                    log.writer("none", Token(1), writer.head),
                )
            ]
            errors = {type(await outcomes.get()) for _ in refused}
        assert errors == {FencedError, LogClosedError, LogNotFoundError}
        assert outcomes.empty()
        assert await read(log, "run") == (1, FRAMES[:3])

    @pytest.mark.promise("P1")
    async def test_retrying_an_append_succeeds_and_changes_nothing(self, log: Log) -> None:
        await write(log, "run", FRAMES[:3])
        await append(log, "run", Token(1), 4, FRAMES[3:6])
        await append(log, "run", Token(1), 4, FRAMES[3:6])
        await append(log, "run", Token(1), 1, FRAMES[:3])
        await append(log, "run", Token(1), 2, FRAMES[1:5])
        assert await read(log, "run") == (1, FRAMES[:6])

    @pytest.mark.promise("P3")
    async def test_retrying_a_closing_append_succeeds_and_changes_nothing(self, log: Log) -> None:
        await write(log, "run", FRAMES[:3])
        for _ in range(2):
            await append(log, "run", Token(1), 4, FRAMES[3:5], close=True)
        await append(log, "run", Token(1), 6, [], close=True)
        await append(log, "run", Token(1), 1, FRAMES[:3])
        assert await log.head("run") == Head(Seq(1), Seq(5), closed=True)
        assert await read(log, "run") == (1, FRAMES[:5])

    @pytest.mark.parametrize(
        ("frames", "close"),
        [
            ([b"bc", b"d"], False),
            ([b"b", b"cdx"], False),
            ([b"b", b"cd", b"e"], False),
            ([b"b", b"cd"], True),
            ([], True),
        ],
    )
    async def test_an_append_that_differs_from_the_log_is_no_retry(
        self, log: Log, frames: list[bytes], close: bool
    ) -> None:
        await write(log, "run", [b"a", b"b", b"cd"])
        with pytest.raises(SeqMismatchError):
            await append(log, "run", Token(1), 2, frames, close=close)
        await append(log, "run", Token(1), 4, [b"e"], close=True)
        with pytest.raises(LogClosedError):
            await append(log, "run", Token(1), 2, [*frames, b"x"], close=close)
        assert await read(log, "run") == (1, [b"a", b"b", b"cd", b"e"])

    async def test_a_log_that_was_never_opened_is_not_found(self, log: Log) -> None:
        await assert_not_found(log, "run")
        await log.delete("run")

    @pytest.mark.promise("P4")
    @pytest.mark.parametrize("close", [False, True])
    async def test_reading_from_every_cursor_gives_the_same_bytes(
        self, log: Log, close: bool
    ) -> None:
        await write(log, "run", FRAMES, close=close)
        for max_bytes, max_events in (1, LARGE), (700, LARGE), (LARGE, 1), (LARGE, 7), (900, 2):
            for after in range(len(FRAMES) + 1):
                read_on = await read(log, "run", after, max_bytes=max_bytes, max_events=max_events)
                assert read_on == (after + 1, FRAMES[after:])

    @pytest.mark.promise("P12")
    async def test_a_read_keeps_to_its_bounds_but_returns_at_least_one_frame(
        self, log: Log
    ) -> None:
        await write(log, "run", [b"a" * 10, b"b" * 10, b"c" * 100, b"d"])
        for after, max_bytes, max_events, last_seq in (
            (0, 20, 9, 2),
            (0, 19, 9, 1),
            (0, 1, 9, 1),
            (0, LARGE, 3, 3),
            (2, 99, 9, 3),
            (2, 101, 1, 3),
            (2, 101, 2, 4),
        ):
            cut = await log.read("run", Seq(after), max_bytes=max_bytes, max_events=max_events)
            assert (cut.first_seq, cut.last_seq) == (after + 1, last_seq)

    async def test_reading_at_the_end_or_after_it_returns_nothing(self, log: Log) -> None:
        await write(log, "run", FRAMES[:3])
        for close in False, True:
            for after in 3, 4, 1000:
                cut = await log.read("run", Seq(after), max_bytes=LARGE, max_events=LARGE)
                assert cut.frames == b""
                assert cut.last_seq < cut.first_seq
            if not close:
                await append(log, "run", Token(1), 4, [], close=True)

    @pytest.mark.promise("P5")
    @pytest.mark.parametrize("close", [False, True])
    async def test_a_read_of_trimmed_events_is_refused_with_the_earliest_seq(
        self, log: Log, close: bool
    ) -> None:
        await write(log, "run", FRAMES[:10], close=close)
        await log.trim("run", Seq(4))
        await log.trim("run", Seq(2))
        assert await log.head("run") == Head(Seq(4), Seq(10), closed=close)
        for after in 0, 2:
            with pytest.raises(ExpiredError) as caught:
                await log.read("run", Seq(after), max_bytes=LARGE, max_events=LARGE)
            assert caught.value.extra["earliest_seq"] == 4
        for after in range(3, 11):
            assert await read(log, "run", after) == (after + 1, FRAMES[after:10])

    async def test_trimming_drops_at_most_all_events_and_the_log_continues(self, log: Log) -> None:
        await write(log, "run", FRAMES[:3])
        await log.trim("run", Seq(100))
        assert await log.head("run") == Head(Seq(4), Seq(3), closed=False)
        await append(log, "run", Token(1), 4, FRAMES[3:5])
        assert await log.head("run") == Head(Seq(4), Seq(5), closed=False)
        assert await read(log, "run", 3) == (4, FRAMES[3:5])

    async def test_a_deleted_log_is_not_found_and_can_be_created_again(self, log: Log) -> None:
        await write(log, "run", FRAMES[:3], close=True)
        await write(log, "other", FRAMES[:2])
        await log.delete("run")
        await assert_not_found(log, "run")
        await log.delete("run")
        await write(log, "run", FRAMES[5:6])
        assert await read(log, "run") == (1, FRAMES[5:6])
        assert await read(log, "other") == (1, FRAMES[:2])

    async def test_a_log_opened_during_its_deletion_is_the_old_or_a_new_one(self, log: Log) -> None:
        await write(log, "run", FRAMES[:3])
        delete = asyncio.create_task(log.delete("run"))
        await asyncio.sleep(0)
        async with asyncio.timeout(WAIT_SECONDS):
            opened = (await log.open("run", Token(1))).head
            await delete
        try:
            head = await log.head("run")
        except LogNotFoundError:
            assert opened == Head(Seq(1), Seq(3), closed=False)
        else:
            assert opened == head == Head(Seq(1), Seq(0), closed=False)

    @pytest.mark.promise("P2")
    async def test_the_tail_of_a_deleted_log_fails(self, log: Log) -> None:
        await write(log, "run", FRAMES[:3])
        async with log.follow("run") as tail:
            await log.delete("run")
            await until(tail, lambda: tail.ended)
            assert isinstance(tail.failure, LogNotFoundError)
            assert not tail.closed

    @pytest.mark.promise("P13")
    async def test_all_followers_of_a_run_share_one_tail(self, log: Log) -> None:
        await write(log, "run", FRAMES[:3])
        async with log.follow("run") as one, log.follow("run") as two:
            assert one is two
            await append(log, "run", Token(1), 4, [], close=True)
            async with log.follow("run") as three:
                await until(three, lambda: three.closed)
                assert await follow(log, "run", 0) == FRAMES[:3]

    @pytest.mark.promise("P13")
    async def test_a_closed_log_keeps_its_tail_while_it_has_followers(self, log: Log) -> None:
        await write(log, "run", FRAMES[:3], close=True)
        async with log.follow("run") as one:
            for number in range(10):
                await write(log, f"other-{number}", FRAMES[:3], close=True)
                assert await follow(log, f"other-{number}", 0) == FRAMES[:3]
            async with log.follow("run") as two:
                assert one is two

    @pytest.mark.promise("P4")
    async def test_following_a_closed_log_ends_immediately_from_every_cursor(
        self, log: Log
    ) -> None:
        await write(log, "run", FRAMES[:10], close=True)
        for after in range(11):
            assert await follow(log, "run", after) == FRAMES[after:10]

    @pytest.mark.promise("P4")
    @pytest.mark.promise("P5")
    async def test_readers_that_join_at_any_time_miss_nothing(self, log: Log) -> None:
        await log.open("run", Token(1))

        async def append_all() -> list[asyncio.Task[list[bytes]]]:
            readers = []
            for index, frame in enumerate(FRAMES):
                readers += [asyncio.create_task(follow(log, "run", at)) for at in (0, index // 2)]
                await append(log, "run", Token(1), index + 1, [frame])
            await append(log, "run", Token(1), len(FRAMES) + 1, [], close=True)
            return readers

        async with asyncio.timeout(WAIT_SECONDS):
            for number, reader in enumerate(await append_all()):
                after = number // 4 if number % 2 else 0
                assert await reader == FRAMES[after:]

    @pytest.mark.promise("P2")
    async def test_every_frame_in_a_tail_can_be_read(self, log: Log) -> None:
        await log.open("run", Token(1))
        async with log.follow("run") as tail:
            appends = asyncio.create_task(append_singly(log, "run", FRAMES))
            for seq in range(1, len(FRAMES) + 1):
                await until(tail, lambda seq=seq: tail.last_seq >= seq)  # type: ignore[misc]
                assert (await log.head("run")).last_seq >= seq
                cut = await log.read("run", Seq(seq - 1), max_bytes=1, max_events=1)
                assert cut.frames == FRAMES[seq - 1]
            await appends

    async def test_every_frame_that_is_read_of_a_followed_run_is_in_its_tail(
        self, log: Log
    ) -> None:
        """C5: a reader of the last frame finds the tail closed."""
        await log.open("run", Token(1))
        async with log.follow("run") as tail:
            for seq, frame in enumerate(FRAMES, 1):
                close = seq == len(FRAMES)
                appending = asyncio.create_task(
                    append(log, "run", Token(1), seq, [frame], close=close)
                )
                for _ in range(3):
                    cut = await log.read("run", Seq(seq - 1), max_bytes=1, max_events=1)
                    assert tail.last_seq >= cut.last_seq
                await appending
            await until(tail, lambda: tail.closed)

    @pytest.mark.promise("P1")
    @pytest.mark.parametrize("ticks", range(6))
    async def test_a_cancelled_append_can_be_retried(self, log: Log, ticks: int) -> None:
        await write(log, "run", FRAMES[:1])
        appending = asyncio.create_task(append(log, "run", Token(1), 2, FRAMES[1:4], close=True))
        for _ in range(ticks):
            await asyncio.sleep(0)
        appending.cancel()
        await asyncio.wait([appending])
        await append(log, "run", Token(1), 2, FRAMES[1:4], close=True)
        assert await log.head("run") == Head(Seq(1), Seq(4), closed=True)
        assert await read(log, "run") == (1, FRAMES[:4])

    @pytest.mark.promise("P1")
    async def test_concurrent_appends_to_many_runs_do_not_mix(self, log: Log) -> None:
        names = [f"run-{number}" for number in range(50)]
        frames = {name: [f"{name}:{seq}".encode() for seq in range(1, 21)] for name in names}

        async def one(name: str) -> None:
            await log.open(name, Token(1))
            await append_singly(log, name, frames[name])

        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(one(name))
        for name in names:
            assert await read(log, name) == (1, frames[name])

    @pytest.mark.promise("P2")
    async def test_aclose_finishes_appends_and_fails_tails(self, log: Log) -> None:
        await write(log, "run", FRAMES[:2])
        async with log.follow("run") as tail:
            appending = asyncio.create_task(append(log, "run", Token(1), 3, FRAMES[2:4]))
            await asyncio.sleep(0)
            async with asyncio.timeout(WAIT_SECONDS):
                await log.aclose()
                await appending
            assert (tail.last_seq, tail.closed) == (4, False)
            assert isinstance(tail.failure, StoreUnavailableError)
        await log.aclose()
        for use in (
            log.open("run", Token(2)),
            append(log, "run", Token(1), 5, FRAMES[4:5]),
            log.head("run"),
            log.read("run", Seq(0), max_bytes=1, max_events=1),
            log.trim("run", Seq(1)),
            log.delete("run"),
            log.find("alias"),
            log.inventory(None, limit=1),
            log.follow("run").__aenter__(),
        ):
            with pytest.raises(StoreUnavailableError):
                await use

    @pytest.mark.promise("P4")
    @pytest.mark.promise("P7")
    @pytest.mark.parametrize("crash", [False, True])
    async def test_acknowledged_changes_are_there_after_reopening(
        self, store: LogStore, crash: bool
    ) -> None:
        log = await store.open_log()
        await write(log, "open", FRAMES[:10])
        await log.open("open", Token(9))
        await write(log, "closed", FRAMES[:20], close=True)
        await log.open("closed", Token(9))
        await write(log, "trimmed", FRAMES[:10])
        await log.trim("trimmed", Seq(5))
        await write(log, "deleted", FRAMES[:10])
        await log.delete("deleted")
        await log.open("late", Token(1), first_seq=Seq(50))
        await write(log, "skipped", FRAMES[:10])
        await log.open("skipped", Token(9), first_seq=Seq(100))
        kept = log.capabilities.survives_process_kill
        await (store.crash(log) if crash else log.aclose())
        log = await store.open_log()
        try:
            await assert_not_found(log, "deleted")
            if not kept:
                await assert_not_found(log, "open")
                return
            assert await log.head("closed") == Head(Seq(1), Seq(20), closed=True)
            assert await read(log, "closed") == (1, FRAMES[:20])
            assert await follow(log, "closed", 7) == FRAMES[7:20]
            assert await log.head("trimmed") == Head(Seq(5), Seq(10), closed=False)
            assert await read(log, "trimmed", 4) == (5, FRAMES[4:10])
            assert await log.head("late") == Head(Seq(50), Seq(49), closed=False)
            assert await log.head("skipped") == Head(Seq(100), Seq(99), closed=False)
            await append(log, "skipped", Token(9), 100, FRAMES[:3])
            assert await read(log, "skipped", 99) == (100, FRAMES[:3])
            for name in "open", "closed", "skipped":
                with pytest.raises(FencedError):
                    await log.open(name, Token(8))
            await append(log, "open", Token(9), 8, FRAMES[7:10])
            await append(log, "open", Token(9), 11, FRAMES[10:12], close=True)
            assert await follow(log, "open", 0) == FRAMES[:12]
        finally:
            await log.aclose()

    @pytest.mark.promise("P2")
    async def test_a_crash_loses_no_event_that_a_follower_saw(self, store: LogStore) -> None:
        log = await store.open_log()
        await log.open("run", Token(1))
        async with log.follow("run") as tail:
            appends = asyncio.create_task(append_singly(log, "run", FRAMES))
            await until(tail, lambda: tail.last_seq >= len(FRAMES) // 2)
            seen = tail.last_seq
            kept = log.capabilities.survives_process_kill
            await store.crash(log)
            appends.cancel()
            await asyncio.wait([appends])
        log = await store.open_log()
        try:
            if not kept:
                await assert_not_found(log, "run")
                return
            first_seq, frames = await read(log, "run")
            assert first_seq == 1
            assert len(frames) >= seen
            assert frames == FRAMES[: len(frames)]
        finally:
            await log.aclose()


async def assert_not_found(log: Log, run_id: str) -> None:
    """Assert that all methods except open and delete raise LogNotFoundError."""
    for use in (
        append(log, run_id, Token(1), 1, FRAMES[:1]),
        log.head(run_id),
        log.read(run_id, Seq(0), max_bytes=1, max_events=1),
        log.trim(run_id, Seq(1)),
    ):
        with pytest.raises(LogNotFoundError):
            await use
    with pytest.raises(LogNotFoundError):
        async with log.follow(run_id):
            pass
