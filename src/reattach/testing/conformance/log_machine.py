"""A search for sequences of calls after which a log differs from the in-memory log.

Subclass ``LogMachine``, give it ``make_store``, and run its ``TestCase``:

>>> class MyMachine(LogMachine):
...     def make_store(self):
...         return MyStore()
>>> TestMyMachine = MyMachine.TestCase
"""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reattach.domain.errors import ReattachError
from reattach.domain.ids import Seq, Token
from reattach.log.base import Head, Log, Slice, Tail
from reattach.log.memory import MemoryLog
from reattach.testing.conformance.log import LogStore
from reattach.testing.conformance.log_reader import WAIT_SECONDS
from reattach.testing.conformance.log_samples import append

T = TypeVar("T")

RUNS = ("a", "b", "c")
runs = st.sampled_from(RUNS)
tokens = st.integers(0, 3).map(Token)
first_seqs = st.one_of(st.just(1), st.integers(1, 60))
aliases = st.sampled_from(["x", "y"])
frame_lists = st.lists(st.binary(max_size=120), max_size=8)
bounds = st.sampled_from([1, 50, 300, 2**40])


@dataclass
class Reader:
    """One reader, with its tails in the log and in the model."""

    run_id: str
    cursor: int
    tail: Tail
    model_tail: Tail
    contexts: AsyncExitStack


@dataclass(frozen=True)
class LastAppend:
    run_id: str
    token: Token
    first_seq: int
    frames: Sequence[bytes]
    close: bool


class LogMachine(RuleBasedStateMachine):
    """Makes the same calls to a log and to its model, and compares the results."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.make_store()
        self.log = self.run_bounded(self.store.open_log())
        self.model: Log = MemoryLog()
        self.readers: list[Reader] = []
        self.last_append: LastAppend | None = None

    def make_store(self) -> LogStore:
        """Return an empty store."""
        raise NotImplementedError

    def teardown(self) -> None:
        self.run_bounded(self.leave())
        self.run_bounded(self.log.aclose())
        self.runner.close()

    def run_bounded(self, work: Coroutine[object, object, T]) -> T:
        """Run ``work`` with a timeout."""

        async def bounded() -> T:
            async with asyncio.timeout(WAIT_SECONDS):
                return await work

        return self.runner.run(bounded())

    def assert_same(
        self, real: Coroutine[object, object, T], expected: Coroutine[object, object, T]
    ) -> None:
        """Assert that both return the same or raise the same."""
        assert self.run_bounded(outcome(real)) == self.run_bounded(outcome(expected))

    @rule(run_id=runs, token=tokens, first_seq=first_seqs, names=st.lists(aliases, max_size=2))
    def open(self, run_id: str, token: Token, first_seq: int, names: list[str]) -> None:
        self.assert_same(
            open_head(self.log, run_id, token, first_seq, names),
            open_head(self.model, run_id, token, first_seq, names),
        )

    @rule(alias=aliases)
    def find(self, alias: str) -> None:
        if self.log.capabilities.finds_aliases:
            self.assert_same(self.log.find(alias), self.model.find(alias))

    @rule(run_id=runs, token=tokens, frames=frame_lists, offset=st.integers(-3, 1))
    def append_anywhere(self, run_id: str, token: Token, frames: list[bytes], offset: int) -> None:
        first_seq = self.last_seq(run_id) + 1 + offset
        self.append(LastAppend(run_id, token, first_seq, frames, close=False))

    @rule(run_id=runs, frames=frame_lists, close=st.sampled_from([False, False, True]))
    def append_at_the_end(self, run_id: str, frames: list[bytes], close: bool) -> None:
        self.append(LastAppend(run_id, Token(3), self.last_seq(run_id) + 1, frames, close))

    @rule(close=st.booleans())
    def repeat_append(self, close: bool) -> None:
        last = self.last_append
        if last is not None:
            close = last.close or close
            self.append(LastAppend(last.run_id, Token(3), last.first_seq, last.frames, close))

    def append(self, wanted: LastAppend) -> None:
        self.last_append = wanted
        self.assert_same(append_wanted(self.log, wanted), append_wanted(self.model, wanted))

    @rule(frames=st.binary(min_size=1, max_size=20))
    def append_to_all_at_once(self, frames: bytes) -> None:
        wanted = [
            LastAppend(run_id, Token(3), self.last_seq(run_id) + 1, [frames, frames], close=False)
            for run_id in RUNS
        ]

        async def appends(log: Log) -> list[object]:
            return await asyncio.gather(*(outcome(append_wanted(log, each)) for each in wanted))

        self.assert_same(appends(self.log), appends(self.model))

    @rule(run_id=runs, first_seq=st.integers(1, 30))
    def trim(self, run_id: str, first_seq: int) -> None:
        self.assert_same(
            self.log.trim(run_id, Seq(first_seq)), self.model.trim(run_id, Seq(first_seq))
        )

    @rule(run_id=runs)
    def delete(self, run_id: str) -> None:
        self.assert_same(self.log.delete(run_id), self.model.delete(run_id))

    @rule(run_id=runs, after=st.integers(0, 40), max_bytes=bounds, max_events=bounds)
    def read(self, run_id: str, after: int, max_bytes: int, max_events: int) -> None:
        self.assert_same(
            self.log.read(run_id, Seq(after), max_bytes=max_bytes, max_events=max_events),
            self.model.read(run_id, Seq(after), max_bytes=max_bytes, max_events=max_events),
        )

    @rule(run_id=runs, back=st.integers(0, 40))
    def follow(self, run_id: str, back: int) -> None:
        async def enter() -> None:
            async with AsyncExitStack() as contexts:
                model_tail = await contexts.enter_async_context(self.model.follow(run_id))
                tail = await contexts.enter_async_context(self.log.follow(run_id))
                cursor = max(model_tail.last_seq - back, 0)
                reader = Reader(run_id, cursor, tail, model_tail, contexts.pop_all())
                self.readers.append(reader)

        if self.run_bounded(outcome(self.model.head(run_id)))[1] is None:
            self.assert_same(enter_and_leave(self.log, run_id), enter_and_leave(self.model, run_id))
        else:
            self.run_bounded(enter())

    @rule(index=st.integers(0, 5), max_bytes=bounds)
    def advance_a_reader(self, index: int, max_bytes: int) -> None:
        if not self.readers:
            return
        reader = self.readers[index % len(self.readers)]
        kept_from = max(reader.tail.first_seq, reader.model_tail.first_seq)
        real, expected = (
            self.run_bounded(outcome(read_on(log, reader, tail, kept_from, max_bytes)))
            for log, tail in ((self.log, reader.tail), (self.model, reader.model_tail))
        )
        if reader.model_tail.failure is None:
            assert real == expected
        if isinstance(real[1], Slice) and real[1].first_seq == reader.cursor + 1:
            reader.cursor = max(real[1].last_seq, reader.cursor)

    @rule()
    def readers_leave(self) -> None:
        self.run_bounded(self.leave())

    @rule(crash=st.booleans())
    def reopen(self, crash: bool) -> None:
        async def reopened() -> Log:
            await (self.store.crash(self.log) if crash else self.log.aclose())
            return await self.store.open_log()

        kept = self.log.capabilities.survives_process_kill
        self.run_bounded(self.leave())
        self.log = self.run_bounded(reopened())
        if not kept:
            self.model = MemoryLog()

    @rule(ticks=st.integers(1, 50))
    def time_passes(self, ticks: int) -> None:
        """Let the log's background work run in part."""

        async def idle() -> None:
            for _ in range(ticks):
                await asyncio.sleep(0.0001)

        self.run_bounded(idle())

    @invariant()
    def heads_are_equal(self) -> None:
        for run_id in RUNS:
            self.assert_same(self.log.head(run_id), self.model.head(run_id))

    @invariant()
    def tails_have_equal_ends(self) -> None:
        for reader in self.readers:
            assert reader.tail.closed is reader.model_tail.closed
            assert type(reader.tail.failure) is type(reader.model_tail.failure)
            assert reader.tail.last_seq == reader.model_tail.last_seq

    def last_seq(self, run_id: str) -> int:
        async def last() -> int:
            try:
                return (await self.model.head(run_id)).last_seq
            except ReattachError:
                return 0

        return self.run_bounded(last())

    async def leave(self) -> None:
        """Let all readers stop following."""
        while self.readers:
            await self.readers.pop().contexts.aclose()


async def open_head(
    log: Log, run_id: str, token: Token, first_seq: int, names: Sequence[str]
) -> Head:
    return (await log.open(run_id, token, first_seq=Seq(first_seq), aliases=names)).head


async def append_wanted(log: Log, wanted: LastAppend) -> None:
    await append(
        log, wanted.run_id, wanted.token, wanted.first_seq, wanted.frames, close=wanted.close
    )


async def read_on(log: Log, reader: Reader, tail: Tail, kept_from: int, max_bytes: int) -> Slice:
    """Return the reader's next slice, from the tail if it begins at ``kept_from``, or from the log.

    Both logs are asked in the same place: the tail of a closed run outlives the log.
    """
    if reader.cursor + 1 >= kept_from:
        return tail.slice(Seq(reader.cursor), max_bytes=max_bytes, max_events=3)
    return await log.read(reader.run_id, Seq(reader.cursor), max_bytes=max_bytes, max_events=3)


async def enter_and_leave(log: Log, run_id: str) -> None:
    async with log.follow(run_id):
        pass


async def outcome(work: Coroutine[object, object, T]) -> tuple[object, T | None]:
    """Return the error's type and machine-readable details, or None and the result."""
    try:
        return None, await work
    except ReattachError as error:
        return (type(error), dict(error.extra), getattr(error, "last_seq", None)), None
    except ValueError:
        return ValueError, None
