"""The tests of a log's ownership, a part of ``LogConformance``."""

import pytest

from reattach.domain.errors import (
    ExpiredError,
    FencedError,
    LogClosedError,
    LogLostError,
    SeqMismatchError,
)
from reattach.domain.ids import Seq, Token
from reattach.log.base import Head, Log
from reattach.testing.conformance.log_reader import LARGE, follow, read
from reattach.testing.conformance.log_samples import FRAMES, append, write


class OwnershipConformance:
    """Tests of fencing, of continuing after a loss, and of aliases."""

    @pytest.mark.promise("P7")
    async def test_a_newer_owner_fences_the_older_one(self, log: Log) -> None:
        await log.open("run", Token(5))
        await append(log, "run", Token(5), 1, FRAMES[:2])
        assert (await log.open("run", Token(6))).head == Head(Seq(1), Seq(2), closed=False)
        for first_seq, frames, close in (
            (3, FRAMES[2:3], False),
            (3, FRAMES[2:3], True),
            (1, FRAMES[:2], False),
            (9, FRAMES[:1], False),
        ):
            with pytest.raises(FencedError):
                await append(log, "run", Token(5), first_seq, frames, close=close)
        with pytest.raises(FencedError):
            await log.open("run", Token(5))
        await append(log, "run", Token(6), 3, FRAMES[2:3])
        assert await read(log, "run") == (1, FRAMES[:3])

    @pytest.mark.promise("P7")
    async def test_taking_over_a_closed_log_changes_only_its_token(self, log: Log) -> None:
        await write(log, "run", FRAMES[:2], close=True)
        assert (await log.open("run", Token(7))).head == Head(Seq(1), Seq(2), closed=True)
        with pytest.raises(FencedError):
            await append(log, "run", Token(1), 3, FRAMES[2:3])
        with pytest.raises(LogClosedError):
            await append(log, "run", Token(7), 3, FRAMES[2:3])
        assert await read(log, "run") == (1, FRAMES[:2])

    @pytest.mark.promise("P5")
    async def test_a_new_log_begins_at_the_given_seq(self, log: Log) -> None:
        assert (await log.open("run", Token(1), first_seq=Seq(100))).head == Head(
            Seq(100), Seq(99), closed=False
        )
        with pytest.raises(SeqMismatchError) as caught:
            await append(log, "run", Token(1), 1, FRAMES[:1])
        assert caught.value.last_seq == 99
        await append(log, "run", Token(1), 100, FRAMES[:3])
        assert (await log.open("run", Token(2), first_seq=Seq(103))).head == Head(
            Seq(100), Seq(102), closed=False
        )
        assert (await log.open("run", Token(2))).head == Head(Seq(100), Seq(102), closed=False)
        with pytest.raises(ExpiredError) as expired:
            await log.read("run", Seq(98), max_bytes=LARGE, max_events=LARGE)
        assert expired.value.extra["earliest_seq"] == 100
        assert await read(log, "run", 99) == (100, FRAMES[:3])

    @pytest.mark.promise("P5")
    async def test_a_log_that_lost_its_end_continues_after_every_cursor_of_its_readers(
        self, log: Log
    ) -> None:
        await write(log, "run", FRAMES[:3])
        async with log.follow("run") as tail:
            assert (await log.open("run", Token(2), first_seq=Seq(10))).head == Head(
                Seq(10), Seq(9), closed=False
            )
            assert (tail.last_seq, tail.closed) == (3, False)
            assert isinstance(tail.failure, LogLostError)
            assert tail.failure.last_seq == 3
        for after in 0, 2, 3, 8:
            with pytest.raises(ExpiredError) as caught:
                await log.read("run", Seq(after), max_bytes=LARGE, max_events=LARGE)
            assert caught.value.extra["earliest_seq"] == 10
        with pytest.raises(FencedError):
            await append(log, "run", Token(1), 4, FRAMES[3:4])
        with pytest.raises(SeqMismatchError):
            await append(log, "run", Token(2), 3, FRAMES[2:3])
        await append(log, "run", Token(2), 10, FRAMES[9:12], close=True)
        assert await log.head("run") == Head(Seq(10), Seq(12), closed=True)
        assert await follow(log, "run", 9) == FRAMES[9:12]

    async def test_a_later_first_seq_has_no_effect_on_a_closed_log_or_for_an_older_owner(
        self, log: Log
    ) -> None:
        await write(log, "closed", FRAMES[:3], close=True)
        assert (await log.open("closed", Token(2), first_seq=Seq(10))).head == Head(
            Seq(1), Seq(3), closed=True
        )
        assert await read(log, "closed") == (1, FRAMES[:3])
        await log.open("open", Token(5))
        with pytest.raises(FencedError):
            await log.open("open", Token(4), first_seq=Seq(10))
        assert await log.head("open") == Head(Seq(1), Seq(0), closed=False)

    @pytest.mark.promise("P9")
    async def test_a_run_is_found_by_its_aliases_while_its_log_exists(self, log: Log) -> None:
        finds = log.capabilities.finds_aliases
        assert await log.find("one") is None
        await log.open("run", Token(1), aliases=["one", "two \n {x}"])
        await log.open("run", Token(2), aliases=["three"])
        for alias in "one", "two \n {x}", "three":
            assert await log.find(alias) == ("run" if finds else None)
            assert await log.find_open(alias) == ("run" if finds else None)
        await log.open("other", Token(5), aliases=["two \n {x}"])
        with pytest.raises(FencedError):
            await log.open("other", Token(4), aliases=["one"])
        await append(log, "run", Token(2), 1, FRAMES[:1], close=True)
        await log.open("run", Token(3), aliases=["late"])
        assert await log.find("late") == ("run" if finds else None)
        assert await log.find_open("late") is None
        await log.delete("run")
        assert await log.find("one") is None
        assert await log.find_open("one") is None
        assert await log.find("late") is None
        assert await log.find("two \n {x}") == ("other" if finds else None)
        await log.open("run", Token(4))
        assert await log.find("one") is None
