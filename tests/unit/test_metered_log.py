"""The log that measures another one: it passes everything on, and counts what fails."""

from __future__ import annotations

import asyncio

import pytest

from reattach.domain.errors import StoreUnavailableError
from reattach.domain.ids import Seq, Token
from reattach.log.base import Log
from reattach.log.memory import MemoryLog
from reattach.log.metered import MeteredLog
from reattach.meters.meters import Meters
from reattach.runs.following.lag import LagMeter

WAIT_SECONDS = 10.0


def test_every_operation_of_a_log_is_passed_on() -> None:
    public = {name for name in vars(Log) if not name.startswith("_")}
    assert public - set(vars(MeteredLog)) == set()


async def test_appends_and_their_events_are_counted_once() -> None:
    meters = Meters()
    log = MeteredLog(MemoryLog(), meters)
    writer = await log.open("run", Token(1))
    writer.put([b"1", b"2"])
    await writer.flush()
    writer.put([b"3"])
    await writer.close([b"4"])
    seconds = meters.store("log")
    assert meters.events == 4
    assert seconds.operation("append").count == 2
    assert seconds.operation("open").count == 1
    assert (await log.head("run")).last_seq == 4
    assert seconds.operation("head").count == 1


async def test_an_operation_that_the_store_does_not_answer_is_counted_as_an_error() -> None:
    meters = Meters()
    log = MeteredLog(MemoryLog(), meters)
    await log.aclose()
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await log.head("run")
    assert meters.store_errors.value("log", "head") == 2
    assert meters.store_errors.value("log", "read") == 0


async def test_the_lag_of_a_reader_counts_each_append_after_it_came_once() -> None:
    meters = Meters()
    log = MeteredLog(MemoryLog(), meters)
    writer = await log.open("run", Token(1))
    writer.put([b"before"])
    await writer.flush()
    put_times = writer.keep_put_times()
    lag = LagMeter(put_times, meters.delivery_lag, Seq(1))
    for number in range(3):
        writer.put([b"one", b"%d" % number])
        await writer.flush()
    async with asyncio.timeout(WAIT_SECONDS):
        lag.note_sent(Seq(1))
        assert meters.delivery_lag.count == 0
        lag.note_sent(Seq(3))
        assert meters.delivery_lag.count == 1
        lag.note_sent(Seq(6))  # Half of the last append is still on its way.
        assert meters.delivery_lag.count == 2
        lag.note_sent(Seq(7))
        lag.note_sent(Seq(7))
    assert meters.delivery_lag.count == 3
    assert 0 <= meters.delivery_lag.sum < WAIT_SECONDS
