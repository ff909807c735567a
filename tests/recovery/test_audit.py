"""Log, records and run drivers that contradict each other, and what the audit makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from sqlalchemy import Connection, text

from reattach.domain.errors import TrimmedError, UnavailableError
from reattach.domain.errors.stores import CommitUnknownError
from reattach.domain.events import RunStatus
from reattach.domain.ids import DEFAULT_TENANT, Seq, Token, new_run_id, new_uuid
from reattach.domain.limits import LOST_LOG_FIRST_SEQ, OPEN_WAIT_SECONDS
from reattach.domain.messages import Role
from reattach.log.sqlite.log import SqliteLog
from reattach.records.base import Run
from reattach.runs.following.follow import Target
from reattach.runs.ownership import audit as audit_module
from reattach.testing.conformance.log_samples import append
from tests.recovery.test_outages import orphans_of
from tests.support.beats import beat
from tests.support.clocks import LeapClock
from tests.support.engines import SteppedEngine
from tests.support.faulty_stores import Faults, Gate, Outage
from tests.support.in_process_readers import Reader
from tests.support.received import end_of
from tests.support.stores import Stores, eventually

T = TypeVar("T")
TEXT = "one two three"
DONE = {"stop_reason": "end_turn", "error_type": None}


async def ended_run(stores: Stores, message: str = TEXT) -> Run:
    service = stores.service()
    return await service.wait_until_settled(
        await service.send(stores.send(await stores.conversation(), message))
    )


async def lose_end(stores: Stores, run: Run, kept: int | None) -> None:
    """Truncate the stored log of the run to its first events, or delete it."""
    frames = await stores.frames(run)
    await stores.log.delete(run.id)
    if kept is not None:
        await stores.log.open(run.id, run.token)
        if kept:
            await append(stores.log, run.id, run.token, 1, frames[:kept])


@pytest.mark.promise("P5")
@pytest.mark.parametrize("cursor", [0, 1, 2, 5, 100])
@pytest.mark.parametrize("kept", [0, 2])
async def test_a_log_that_lost_its_end_reports_the_loss_at_every_cursor_and_then_gives_the_end(
    stores: Stores, cursor: int, kept: int
) -> None:
    """C2: the record has ended, and the log is open."""
    run = await ended_run(stores)
    await lose_end(stores, run, kept)
    service = stores.service()
    async with Reader(service, run, cursor) as reader:
        await reader.to_end()
    assert (reader.status, reader.error["code"]) == (410, "events_lost")
    assert "lost" in reader.error["detail"]
    assert reader.error["earliest_seq"] == LOST_LOG_FIRST_SEQ
    async with Reader(service, run, LOST_LOG_FIRST_SEQ - 1) as late:
        received = await late.to_end()
    assert (received.end(), received.done) == (DONE, True)
    assert service.audit.found.lost_ends == 1
    assert (await stores.run(run)).status is RunStatus.COMPLETED


@pytest.mark.promise("P5")
async def test_a_failed_run_whose_log_lost_its_end_shows_the_error_of_its_record(
    stores: Stores,
) -> None:
    """C2: the new end of the log says what the record says."""
    run = await ended_run(stores, "[fail=1]")
    end = end_of(await stores.frames(run))
    await lose_end(stores, run, 1)
    service = stores.service()
    await service.audit.compare_logs()
    async with Reader(service, run, LOST_LOG_FIRST_SEQ - 1) as late:
        assert (await late.to_end()).end() == end


@pytest.mark.promise("P5")
@pytest.mark.parametrize("kept", [None, 0, 2])
async def test_a_log_that_changed_since_a_reader_found_it_trimmed_is_reported_as_lost(
    stores: Stores, kept: int | None
) -> None:
    """Two Redis servers answered one after the other, each with a log of its own."""
    run = await ended_run(stores)
    await lose_end(stores, run, kept)
    service = stores.service()
    error = await service.audit.explain_trimmed(Target.of(run), TrimmedError(run.id, Seq(4)))
    assert error.code == "events_lost"


@pytest.mark.promise("P5")
async def test_a_log_without_its_beginning_is_lost_unless_more_events_are_known_to_have_been_there(
    stores: Stores,
) -> None:
    run = await ended_run(stores)
    frames = await stores.frames(run)
    await stores.log.delete(run.id)
    await stores.log.open(run.id, run.token, first_seq=Seq(3))
    await append(stores.log, run.id, run.token, 3, frames[2:], close=True)
    for count, code in ((len(frames), "expired"), (None, "events_lost")):
        change = text("UPDATE runs SET event_count = :count").bindparams(count=count)
        await stores.records._database.in_write(partial(Connection.execute, statement=change))
        async with Reader(stores.service(), run, 1) as reader:
            await reader.to_end()
        assert (reader.status, reader.error["code"]) == (410, code)
        assert reader.error["earliest_seq"] == 3


@pytest.mark.promise("P5", "P14")
async def test_a_log_that_is_gone_before_its_retention_is_reported_as_lost(stores: Stores) -> None:
    """C2: 410 says "lost", and not that the events were kept until tomorrow."""
    run = await ended_run(stores)
    await lose_end(stores, run, None)
    clock = LeapClock()
    service = stores.service(clock=clock)
    async with Reader(service, run) as reader:
        await reader.to_end()
    assert (reader.status, reader.error["code"]) == (410, "events_lost")
    clock.leap(25 * 3600)
    async with Reader(service, run) as reader:
        await reader.to_end()
    assert (reader.status, reader.error["code"]) == (410, "expired")
    # The log expired after the reader had found that its beginning was gone.
    error = await service.audit.explain_trimmed(Target.of(run), TrimmedError(run.id, Seq(4)))
    assert error.code == "expired"


@pytest.mark.promise("P5")
@pytest.mark.parametrize("token", [1, 2, 700])
async def test_the_audit_ends_every_log_whose_end_was_lost_once(
    stores: Stores, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C2: found without a reader, whatever the token of the log, over several pages."""
    monkeypatch.setattr(audit_module, "AUDIT_PAGE_LOGS", 2)
    runs = [await ended_run(stores) for _ in range(5)]
    whole = await stores.frames(runs[0])
    for run in runs[1:]:
        await lose_end(stores, run, 2)
        await stores.log.open(run.id, token)
    service = stores.service()
    working = await service.send(stores.send(await stores.conversation(), "[hang=1]"))
    for _ in range(2):
        await service.audit.compare_logs()
        assert service.audit.found.lost_ends == 4
    assert service.audit.found.total == 4
    assert await stores.frames(runs[0]) == whole
    assert (await stores.run(working)).status.is_active
    for run in runs[1:]:
        head = await stores.head(run)
        assert head is not None
        assert (head.closed, head.first_seq) == (True, LOST_LOG_FIRST_SEQ)


@pytest.mark.promise("P5")
async def test_a_log_is_ended_as_lost_though_its_record_has_a_status_of_a_later_version(
    stores: Stores,
) -> None:
    """C2: neither an unknown status nor a damaged row stops the audit."""
    run, damaged = [await ended_run(stores) for _ in range(2)]
    for one in (run, damaged):
        await lose_end(stores, one, 1)
    for values in ("status = 'paused'", "usage = '{\"prompt_tokens\": 1.5}'"):
        at = run.id if values.startswith("status") else damaged.id
        await stores.execute(f"UPDATE runs SET {values} WHERE id = :id", id=at)
    service = stores.service()
    await service.audit.compare_logs()
    assert service.audit.found.lost_ends == 2


@pytest.mark.promise("P14")
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_log_without_a_record_is_deleted_after_the_retention(
    stores: Stores, tmp_path: Path, store: str, closed: bool
) -> None:
    """C11: the records lost the commit of its run."""
    if store == "sqlite":
        stores.log = await SqliteLog.open_file(tmp_path / "events.db")
    clock = stores.clock
    assert isinstance(clock, LeapClock)
    known = await ended_run(stores)
    strangers = [new_run_id() for _ in range(3)]
    for run_id in strangers:
        await stores.log.open(run_id, Token(1))
        await append(stores.log, run_id, Token(1), 1, [b"data: {}\n\n"], close=closed)
    service = stores.service(retention=timedelta(hours=1))
    for _ in range(2):
        await service.audit.compare_logs()
        assert service.audit.found.logs_without_record == 3
        assert await service.sweep() == 0
    clock.leap(3601)
    assert await service.sweep() == 4
    inventory = await stores.log.inventory(None, limit=100)
    known_head = await stores.head(known)
    if store == "sqlite":
        await stores.log.aclose()
    assert (inventory.entries, known_head) == ([], None)


@pytest.mark.promise("P7")
async def test_an_active_run_without_a_driver_is_ended_by_the_next_heartbeat(
    stores: Stores,
) -> None:
    """C4: a commit that landed after everybody had given it up."""
    service = stores.service()
    await service.start()
    conversation = await stores.conversation()
    working = await service.send(stores.send(await stores.conversation(), "[hang=1]"))
    run = service._sends._new_run(stores.send(conversation, TEXT), "scripted/echo")
    await stores.records.runs.create(DEFAULT_TENANT, run, None, [])
    await beat(service)
    assert (await stores.run(run)).status is RunStatus.FAILED
    assert end_of(await stores.frames(run))["error_type"] == "internal_error"
    assert (await stores.run(working)).status.is_active
    await beat(service)
    assert service.audit.found.runs_without_driver == 1
    assert service.audit.found.total == 1
    await stores.assert_free(conversation)


@pytest.mark.promise("P7")
@pytest.mark.parametrize("lost", ["taken over", "no record", "ended"])
async def test_a_driver_stops_when_its_process_no_longer_owns_the_run(
    stores: Stores, lost: str
) -> None:
    """C4: the other direction: a driver without an active run of its process."""
    engine = SteppedEngine("one ", "two ")
    service = stores.service(engine=engine)
    await service.start()
    run = await service.send(stores.send(await stores.conversation(), TEXT))
    await eventually(lambda: is_running(stores, run))
    change = {
        "taken over": "UPDATE runs SET owner = 'another' WHERE id = :id",
        "no record": "DELETE FROM runs WHERE id = :id",
        "ended": "UPDATE runs SET status = 'failed' WHERE id = :id",
    }[lost]
    await beat(service)
    assert service.audit.found.total == 0
    await stores.execute(change, id=run.id)
    await beat(service)
    await beat(service)
    async with asyncio.timeout(10):
        await engine.closed.wait()
    assert service.audit.found.drivers_without_run == 1


async def is_running(stores: Stores, run: Run) -> bool:
    return (await stores.run(run)).status is RunStatus.RUNNING


class UnknownCommit(Faults):
    """Leaves the first commits of new runs unconfirmed; they ``land`` or do not."""

    def __init__(self, *, lands: bool, times: int = 1) -> None:
        super().__init__()
        self._lands = lands
        self._left = times

    async def around(self, step: str, call: Callable[[], Awaitable[T]]) -> T:
        if step == "runs.create" and self._left:
            self._left -= 1
            if self._lands:
                await super().around(step, call)
            raise CommitUnknownError("The commit was not confirmed.")
        return await super().around(step, call)


@pytest.mark.promise("P9")
@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("lands", [True, False])
async def test_a_send_whose_commit_was_not_confirmed_is_settled_by_the_same_id(
    stores: Stores, lands: bool, times: int, keyed: bool
) -> None:
    """C4: "unknown" is neither "yes" nor "no"."""
    conversation = await stores.conversation()
    service = stores.service_upon(UnknownCommit(lands=lands, times=times))
    send = stores.send(conversation, TEXT, otid="mine")
    if not keyed:
        (message,) = send.messages
        send = replace(send, messages=(msgspec.structs.replace(message, otid=None),))
    run = await service.wait_until_settled(await service.send(send))
    assert run.status is RunStatus.COMPLETED
    if keyed:
        assert (await service.send(stores.send(conversation, TEXT, otid="mine"))).id == run.id
    assert await stores.kept(conversation) == [(Role.USER, TEXT), (Role.ASSISTANT, TEXT)]


@pytest.mark.promise("P15")
async def test_a_send_that_was_accepted_before_the_drain_gets_the_drain_time(
    stores: Stores,
) -> None:
    """C6: SIGTERM between the check for a drain and the registration of the run."""
    gate = Gate("log.find")
    service = stores.service_upon(gate)
    sending = asyncio.create_task(
        service.send(stores.send(await stores.conversation(), TEXT, otid="late"))
    )
    async with asyncio.timeout(10):
        await gate.waiting.wait()
        draining = asyncio.create_task(service.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError):
            await service.send(stores.send(await stores.conversation(), TEXT))
        gate.opened.set()
        run = await sending
        await draining
    assert end_of(await stores.frames(run)) == DONE
    assert (await stores.run(run)).status is RunStatus.COMPLETED


@pytest.mark.promise("P9", "P15")
async def test_a_duplicate_gets_its_run_while_the_server_drains(stores: Stores) -> None:
    """C16: P9 holds while draining."""
    service = stores.service()
    conversation = await stores.conversation()
    run = await service.send(stores.send(conversation, "[hang=1]", otid="known"))
    draining = asyncio.create_task(service.drain(60))
    await eventually(lambda: service.draining)
    again = await service.send(stores.send(conversation, "[hang=1]", otid="known"))
    assert again.id == run.id
    with pytest.raises(UnavailableError):
        await service.send(stores.send(await stores.conversation(), TEXT, otid=new_uuid()))
    await service.cancel([run])
    await draining


@pytest.mark.promise("P5")
async def test_a_follow_that_must_not_wait_for_a_log_returns_at_once(stores: Stores) -> None:
    """C16: the fast path does not wait, so that the route behind it waits only once."""
    clock = LeapClock()
    service = stores.service(clock=clock)
    service.ownership.shared = True
    (run,) = await orphans_of(stores, 1)
    await stores.log.delete(run.id)
    waited = []
    for waits in (False, True):
        before = clock.monotonic_seconds()
        with pytest.raises(UnavailableError):
            await service.follow(Target.of(run), 0, max_events=10, waits=waits)
        waited.append(clock.monotonic_seconds() - before)
    assert waited[0] == 0
    assert OPEN_WAIT_SECONDS <= waited[1] < 1.1 * OPEN_WAIT_SECONDS


@pytest.mark.promise("P5", "P9")
async def test_a_run_that_ends_between_the_look_for_its_log_and_for_its_record_is_not_lost(
    stores: Stores,
) -> None:
    opening, getting = Gate("log.open"), Gate("runs.get")
    owner, other = stores.service_upon(opening), stores.service_upon(getting)
    run = await owner.send(stores.send(await stores.conversation(), TEXT))
    await opening.waiting.wait()
    following = asyncio.create_task(other.follow(Target.of(run), 0, max_events=100))
    async with asyncio.timeout(10):
        await getting.waiting.wait()
        opening.opened.set()
        await owner.wait_until_settled(run)
        getting.opened.set()
        async with await following as reader:
            assert (await reader.read()).frames == b"".join(await stores.frames(run))


async def test_the_audit_goes_on_with_the_next_call_after_an_outage(stores: Stores) -> None:
    """C2: a store that does not answer leaves the audit to its next time."""
    run = await ended_run(stores)
    await lose_end(stores, run, 1)
    outage = Outage("runs.standings", lasts=1)
    service = stores.service_upon(outage, retention=timedelta(hours=1))
    with pytest.raises(UnavailableError):
        await service.audit.compare_logs()
    await service.audit.compare_logs()
    assert service.audit.found.lost_ends == 1
