"""Orphans with data that cannot be read."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from reattach.domain.events import RunStatus, StopReason
from reattach.domain.ids import DEFAULT_TENANT, RunId, Token, new_run_id
from reattach.domain.messages import Role
from reattach.log.sqlite.log import Sizes, SqliteLog
from reattach.records.base import (
    Run,
    Settlement,
    Span,
)
from reattach.runs.ownership import recovery
from reattach.testing.conformance.log_samples import append
from tests.recovery.test_audit import ended_run
from tests.recovery.test_boundaries import die_working
from tests.recovery.test_outages import OneLogDown, orphans_of
from tests.recovery.test_waiting_calls import ASK, answer_to, pending
from tests.support.clocks import LeapClock
from tests.support.faulty_stores import Faults
from tests.support.in_process_readers import Reader
from tests.support.log_stores import SMALL
from tests.support.received import answer, end_of
from tests.support.records_files import open_records
from tests.support.stores import Stores, stores_of

DIED = "stream_incomplete"


@pytest.mark.promise("P7")
async def test_a_run_whose_conversation_was_deleted_is_recovered_and_does_not_delay_others(
    stores: Stores,
) -> None:
    """C1: a run that answers an approval, its conversation deleted, its process killed."""
    conversation = await stores.conversation()
    service = stores.service()
    await service.wait_until_settled(await service.send(stores.send(conversation, ASK)))
    waits = await pending(stores, conversation)
    assert waits is not None
    messages: Any = (answer_to(waits),)
    run, _ = await die_working(stores, conversation, "after log.append", text="", messages=messages)
    await stores.records.conversations.delete(DEFAULT_TENANT, conversation.id)
    (other,) = await orphans_of(stores, 1)
    await stores.service().start()
    assert await stores.active_runs() == []
    for one in (run, other):
        assert end_of(await stores.frames(one))["error_type"] == DIED


async def add_frame(stores: Stores, run: Run, frame: bytes) -> None:
    head = await stores.head(run)
    assert head is not None
    await append(stores.log, run.id, run.token, head.last_seq + 1, [frame])


FRAMES = {
    "an event type of a later version": b'data: {"message_type":"hologram","seq_id":2}\n\n',
    "bytes that are no JSON": b"data: {\x00\xff\n\n",
    "no data at all": b"nothing\n\n",
    "a known event without its members": b'data: {"message_type":"assistant_message"}\n\n',
}


@pytest.mark.promise("P3", "P7")
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
async def test_a_run_with_an_unreadable_event_ends_and_keeps_its_other_events(
    stores: Stores, frame: bytes
) -> None:
    """C1: an unknown or damaged event stops neither the start nor another run."""
    run, other = await orphans_of(stores, 2)
    await add_frame(stores, run, frame)
    await stores.service().start()
    assert (await stores.run(run)).stop_reason is StopReason.ERROR
    assert (await stores.run(other)).stop_reason is StopReason.ERROR
    frames = await stores.frames(run)
    assert frames[1] == frame
    assert end_of(frames[2:])["error_type"] == DIED
    assert run.thread.conversation_id is not None
    kept = await stores.records.messages.of_run(DEFAULT_TENANT, run.id, Span(10, ascending=True))
    assert [(one.role, one.text) for one in kept][1:] == [(Role.ASSISTANT, "t0 ")]


@pytest.mark.promise("P7")
async def test_a_closed_log_whose_end_cannot_be_read_settles_its_run_as_failed(
    stores: Stores,
) -> None:
    """C1: a closed log without a readable terminal group."""
    (run,) = await orphans_of(stores, 1)
    await append(stores.log, run.id, run.token, 2, [b"data: damaged\n\n"], close=True)
    await stores.service().start()
    settled = await stores.run(run)
    assert settled.status is RunStatus.FAILED
    assert settled.error is not None
    assert "cannot be read" in settled.error.message


DAMAGES = {
    "input": "UPDATE runs SET input = '[{\"id\": 1}]' WHERE id = :id",
    "no JSON": "UPDATE runs SET input = '{{{' WHERE id = :id",
    "request_config": "UPDATE runs SET request_config = 'x' WHERE id = :id",
    "begun_calls": "UPDATE runs SET begun_calls = '7' WHERE id = :id",
    "usage": "UPDATE runs SET usage = '{\"prompt_tokens\": 1.5}' WHERE id = :id",
}


@pytest.mark.promise("P7")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_run_whose_record_is_damaged_is_ended_and_does_not_delay_others(
    stores: Stores, damage: str
) -> None:
    """C1: a record that cannot be read stops neither the start nor another run."""
    run, other = await orphans_of(stores, 2)
    await stores.execute(damage, id=run.id)
    await stores.service().start()
    rows = await stores.records._database.rows(text("SELECT status FROM runs ORDER BY ordinal"))
    assert [row["status"] for row in rows] == ["failed", "failed"]
    for one in (run, other):
        assert end_of(await stores.frames(one))["error_type"] == DIED


@pytest.mark.promise("P7")
async def test_a_run_whose_messages_cannot_be_stored_ends_without_them(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C1: any exception while a recovered run is settled."""
    run, other = await orphans_of(stores, 2)
    settle = stores.records.runs.settle

    async def refusing(run_id: RunId, settlement: Settlement) -> bool:
        if settlement.messages:
            raise RuntimeError("no such message can be stored")
        return await settle(run_id, settlement)

    monkeypatch.setattr(stores.records.runs, "settle", refusing)
    await stores.service().start()
    for one in (run, other):
        assert (await stores.run(one)).status is RunStatus.FAILED
        assert answer(await stores.frames(one)) == "t0 "


@pytest.mark.promise("P7")
async def test_every_orphan_has_its_end_before_the_start_returns_for_any_number_of_them(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C3: more active runs than one batch of the recovery has, one of them out of reach."""
    monkeypatch.setattr(recovery, "SWEEP_BATCH_RUNS", 3)
    runs = await orphans_of(stores, 10)
    log = OneLogDown(stores.log, runs[1].id)
    service = stores.service(log=log)
    with pytest.raises(Exception, match="down"):
        await service.recover()
    assert [run.id for run in await stores.active_runs()] == [runs[1].id]
    log.down = ""
    await stores.service().start()
    assert await stores.active_runs() == []


@pytest.mark.promise("P7")
@pytest.mark.parametrize("ahead", [2, 3, 40, 5000])
async def test_a_run_whose_log_has_a_higher_token_than_its_record_gets_its_end(
    stores: Stores, ahead: int
) -> None:
    """C14: the records lost a take-over, so the log refuses the token of the record."""
    (run,) = await orphans_of(stores, 1)
    await stores.log.open(run.id, Token(ahead))
    await stores.service().start()
    assert (await stores.run(run)).status is RunStatus.FAILED
    assert end_of(await stores.frames(run))["error_type"] == DIED


@pytest.mark.promise("P7")
async def test_a_fenced_run_that_another_process_owns_is_left_to_it(stores: Stores) -> None:
    """C14: a log that refuses the token because another process took the run over."""
    (run,) = await orphans_of(stores, 1)

    class TakenMeanwhile(Faults):
        async def around(self, step: str, call: Callable[[], Any]) -> Any:
            if step == "log.open" and self.calls[step] == 0:
                claim = run.id, Token(run.token + 1)
                (taken,) = await stores.records.runs.take_over([claim], "another")
                await stores.log.open(run.id, taken.run.token)
            return await super().around(step, call)

    await stores.service_upon(TakenMeanwhile()).recover()
    found = await stores.run(run)
    assert (found.status, found.owner) == (RunStatus.RUNNING, "another")


@asynccontextmanager
async def in_files(
    directory: Path, sizes: Sizes = SMALL
) -> AsyncIterator[tuple[Stores, SqliteLog, Path]]:
    """Stores in files, their log, and its file. The last log of the stores is closed at the end."""
    clock = LeapClock()
    file = directory / "events.db"
    log = await SqliteLog.open_file(file, sizes=sizes)
    records = await open_records(directory, clock)
    async with stores_of(records, log, clock) as stores:
        yield stores, log, file
        await stores.log.aclose()


@pytest.mark.promise("P7")
@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM log_chunk WHERE number = 1 AND first_seq > 1",
        "UPDATE log_chunk SET frames = x'00' WHERE number = 1",
        "UPDATE log_chunk SET ends = x'0001' WHERE number = 1",
        "UPDATE log_journal SET batch = x'ff00' || substr(batch, 3)",
        "UPDATE log_journal SET batch = x'030000000500000001' WHERE id % 2 = 0",
        "DELETE FROM log_journal WHERE id % 2 = 0",
        "DELETE FROM log_run WHERE number = 1",
        "UPDATE log_run SET last_seq = 'x' WHERE number = 1",
        "UPDATE log_run SET run_id = x'ff00' WHERE number = 1",
        "UPDATE log_run SET closed = 'x' WHERE number = 1",
        "UPDATE log_run SET token = -1 WHERE number = 1",
        f"UPDATE log_run SET number = {2**32 - 1} WHERE number = 1",
        f"UPDATE log_journal SET id = {2**63 - 1} WHERE id = (SELECT min(id) FROM log_journal)",
        "UPDATE log_journal SET id = -5 WHERE id = (SELECT max(id) FROM log_journal)",
        "UPDATE log_journal SET batch = 'strange'",
        "INSERT INTO log_meta VALUES ('uncertain_before', 'x')",
        f"INSERT INTO log_journal VALUES (9999, x'02000000000000ffffffff{'00' * 7}7f{'00' * 8}')",
    ],
)
async def test_a_damaged_log_in_a_file_stops_neither_the_start_nor_another_run(
    tmp_path: Path, damage: str
) -> None:
    """C1: damaged or missing rows of the event log's file."""
    small: Sizes = replace(SMALL, journal_bytes=10_000)
    async with in_files(tmp_path, small) as (stores, log, file):
        runs = await orphans_of(stores, 3)
        for run in runs:
            for seq in range(2, 30):
                frame = b'data: {"message_type":"ping","seq_id":%d,"id":"p"}\n\n' % seq
                await append(log, run.id, run.token, seq, [frame])
        await log.aclose()
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(damage)
        stores.log = again = await SqliteLog.open_file(file)
        await stores.service().start()
        assert await stores.active_runs() == []
        for run in runs:
            head = await again.head(run.id)
            assert head.closed
            assert head.last_seq >= 30 or head.first_seq == 1
            assert (await stores.run(run)).status is RunStatus.FAILED
        await stores.assert_free(await stores.conversation())


STRANGE = {
    "text": "'x'",
    "a blob": "x'ff00'",
    "text that is not UTF-8": "CAST(x'ff' AS TEXT)",
    "a huge number": str(2**63 - 1),
    "a negative number": "-5",
}
RUN_DAMAGES = {
    **{
        f"{column} is {name}": f"UPDATE log_run SET {column} = {value} WHERE number = 1"
        for column in ("token", "first_seq", "last_seq", "closed")
        for name, value in STRANGE.items()
    },
    "run_id is a blob": "UPDATE log_run SET run_id = x'ff00' WHERE number = 1",
    "run_id is not UTF-8": "UPDATE log_run SET run_id = CAST(x'ff' AS TEXT) WHERE number = 1",
    "number is huge": f"UPDATE log_run SET number = {2**63 - 1} WHERE number = 1",
    "number is the highest of 32 bits": f"UPDATE log_run SET number = {2**32 - 1} WHERE number = 1",
    "number is negative": "UPDATE log_run SET number = -5 WHERE number = 1",
    "the last seq is before the first": "UPDATE log_run SET last_seq = 3, first_seq = 5 "
    "WHERE number = 1",
}


async def rows_of(file: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection, connection:
        return connection.execute(statement).fetchall()


async def fold_and_prune(log: SqliteLog, file: Path) -> None:
    """Wait until everything that is in the journal is only in the tables of folded runs."""
    ((last,),) = await rows_of(file, "SELECT coalesce(max(id), 0) FROM log_journal")
    async with asyncio.timeout(10):
        while await rows_of(file, f"SELECT 1 FROM log_journal WHERE id <= {last}"):
            run_id = new_run_id()
            await log.open(run_id, Token(1))
            await append(log, run_id, Token(1), 1, [b"x" * 200], close=True)
            await log.delete(run_id)


@pytest.mark.promise("P5", "P7")
@pytest.mark.parametrize("damage", RUN_DAMAGES.values(), ids=RUN_DAMAGES)
async def test_a_damaged_row_of_an_ended_run_affects_only_resumes_of_that_run(
    tmp_path: Path, log_lines: list[Any], damage: str
) -> None:
    """C1: a damaged row of the log stops neither the start nor a listing nor another run."""
    async with in_files(tmp_path) as (stores, log, file):
        damaged, *others = [await ended_run(stores) for _ in range(3)]
        before = [await stores.frames(run) for run in others]
        await fold_and_prune(log, file)
        await log.aclose()
        await rows_of(file, damage)
        stores.log = again = await SqliteLog.open_file(file, sizes=SMALL)
        service = stores.service()
        await service.start()
        await service.audit.compare_logs()
        assert service.audit.found.lost_ends == 0
        async with Reader(service, damaged) as reader:
            await reader.to_end()
        assert (reader.status, reader.error["code"]) == (410, "events_lost")
        lines = [line for line in log_lines if line.get("table") == "log_run"]
        assert lines or "number" in damage
        assert [await stores.frames(run) for run in others] == before
        listed = [entry.run_id for entry in (await again.inventory(None, limit=1)).entries]
        assert len(listed) == 1
        await stores.assert_free(await stores.conversation())
        await again.delete(damaged.id)
        await again.open(damaged.id, Token(9))
        await append(again, damaged.id, Token(9), 1, [b"data: new\n\n"], close=True)
        await fold_and_prune(again, file)
        await again.aclose()
        stores.log = again = await SqliteLog.open_file(file, sizes=SMALL)
        assert await stores.frames(damaged) == [b"data: new\n\n"]


CHUNK_DAMAGES = {
    **{
        f"{column} is {name}": f"UPDATE log_chunk SET {column} = {value} WHERE number = 1"
        for column in ("last_seq", "ends", "frames")
        for name, value in STRANGE.items()
    },
    **{
        f"first_seq is {name}": f"UPDATE log_chunk SET first_seq = {value} WHERE first_seq = 1"
        for name, value in STRANGE.items()
    },
    "frames are empty": "UPDATE log_chunk SET frames = x''",
    "ends are empty": "UPDATE log_chunk SET ends = x''",
    "ends go back": "UPDATE log_chunk SET ends = x'ffff0000' || substr(ends, 5)",
    "there is a frame less": "UPDATE log_chunk SET ends = substr(ends, 5)",
    "the chunk is of another run": "UPDATE log_chunk SET number = 9 WHERE first_seq = 1",
}


@pytest.mark.promise("P5")
@pytest.mark.parametrize("damage", CHUNK_DAMAGES.values(), ids=CHUNK_DAMAGES)
async def test_a_damaged_chunk_of_an_ended_run_is_reported_before_the_headers(
    tmp_path: Path, log_lines: list[Any], damage: str
) -> None:
    """C1: a damaged row of the log; clients that got 200 and nothing more came back for ever."""
    async with in_files(tmp_path) as (stores, log, file):
        run = await ended_run(stores)
        await fold_and_prune(log, file)
        await rows_of(file, damage)
        async with Reader(stores.service(), run) as reader:
            await reader.to_end()
        assert (reader.status, reader.error["code"]) == (410, "events_lost")
        assert reader.received.cursor == 0
        assert any(line.get("run_id") == run.id for line in log_lines if "damaged" in line["event"])
        await stores.log.delete(run.id)
        async with asyncio.timeout(10):
            while await rows_of(file, "SELECT 1 FROM log_chunk WHERE number = 1"):
                await asyncio.sleep(0.01)


@pytest.mark.promise("P5")
async def test_a_chunk_that_is_damaged_after_others_cuts_the_reader_and_then_is_reported(
    tmp_path: Path, log_lines: list[Any]
) -> None:
    """C1: a damaged row of the log behind events that can be read."""
    async with in_files(tmp_path) as (stores, log, file):
        run = await ended_run(stores)
        await fold_and_prune(log, file)
        ((first_seq,),) = await rows_of(file, "SELECT max(first_seq) FROM log_chunk")
        await rows_of(file, f"UPDATE log_chunk SET frames = x'00' WHERE first_seq = {first_seq}")
        service = stores.service()
        async with Reader(service, run) as reader:
            await reader.to_end()
        assert (reader.status, reader.received.cursor) == (200, first_seq - 1)
        assert (reader.whole, reader.received.done) == (False, False)
        (line,) = [line for line in log_lines if line["event"] == "reader cut off"]
        assert (line["log_level"], line["run_id"]) == ("warning", run.id)
        async with Reader(service, run, first_seq - 1) as again:
            await again.to_end()
        assert (again.status, again.error["code"]) == (410, "events_lost")
