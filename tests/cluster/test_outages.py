"""Stores that are unavailable for a while, and stores that come back without their data."""

from __future__ import annotations

import asyncio

import pytest

from reattach.domain import backoff
from reattach.domain.errors import StoreUnavailableError
from reattach.domain.errors.stores import EventsLostError
from reattach.domain.events import RunStatus
from reattach.domain.ids import Seq
from reattach.domain.limits import LOST_LOG_FIRST_SEQ
from reattach.domain.messages import Role
from reattach.records.base import Target
from reattach.runs import service
from reattach.runs.inspection.frames import read_page
from reattach.runs.ownership.lease import Ownership
from reattach.testing.programs.redis import RedisServer
from reattach.testing.programs.relay import Relay
from tests.cluster.nodes import Nodes, nodes_on
from tests.support.beats import beat, renew_lease
from tests.support.clocks import LeapClock
from tests.support.engines import SteppedEngine
from tests.support.faulty_stores import Gate, Outage, faulty_records
from tests.support.in_process_readers import Reader
from tests.support.received import end_of
from tests.support.stores import eventually

LOST = {"stop_reason": "error", "error_type": "internal_error"}
DONE = {"stop_reason": "end_turn", "error_type": None}


@pytest.mark.promise("P1", "P2", "P4")
async def test_readers_and_runs_continue_when_redis_is_back_with_its_data(
    postgresql_url: str,
) -> None:
    redis = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    try:
        async with nodes_on(postgresql_url, redis.url) as nodes:
            engine = SteppedEngine("one ", "two ", "three ")
            owner, other = await nodes.node(engine=engine), await nodes.node()
            conversation = await nodes.stores.conversation()
            run = await owner.runs.send(nodes.stores.send(conversation, "count"))
            engine.step()
            async with Reader(owner.runs, run) as near, Reader(other.runs, run) as far:
                await near.until_seq(1)
                await far.until_seq(1)
                redis.kill()
                engine.step()
                with pytest.raises(StoreUnavailableError):
                    await owner.runs.send(
                        nodes.stores.send(await nodes.stores.conversation(), "more")
                    )
                redis.start()
                engine.step(2)
                received = [await reader.to_end() for reader in (near, far)]
            for one in received:
                assert (one.text, one.end(), one.done) == ("one two three ", DONE, True)
                assert one.frames == await nodes.stores.frames(run)
            assert len(await nodes.stores.active_runs()) == 0
    finally:
        redis.close()


@pytest.mark.promise("P5")
async def test_a_run_whose_log_was_lost_ends_in_an_error_and_shows_no_other_text(
    frail: Nodes, redis: RedisServer
) -> None:
    engine = SteppedEngine("one ", "two ", "three ")
    owner, other = await frail.node(engine=engine), await frail.node()
    conversation = await frail.stores.conversation()
    run = await owner.runs.send(frail.stores.send(conversation, "count"))
    engine.step(2)
    async with Reader(owner.runs, run) as near, Reader(other.runs, run) as far:
        await near.until_seq(2)
        await far.until_seq(2)
        redis.kill()
        redis.start()
        engine.step()
        for reader in (near, far):
            received = await reader.to_end()
            assert not received.done
            assert received.text == "one two "
    async with asyncio.timeout(10):
        assert (await owner.runs.wait_until_settled(run)).status is RunStatus.FAILED
    assert await frail.stores.kept(conversation) == [
        (Role.USER, "count"),
        (Role.ASSISTANT, "one two three "),
    ]
    for node in (owner, other):
        async with Reader(node.runs, run, 1) as behind:
            await behind.to_end()
        assert (behind.status, behind.error["earliest_seq"]) == (410, 4)
        assert behind.error["code"] == "events_lost"
        with pytest.raises(EventsLostError):
            await read_page(node.runs, Target.of(run), after_seq=Seq(1), limit=1)
        async with Reader(node.runs, run, 3) as abreast:
            received = await abreast.to_end()
        assert (received.text, received.end(), received.done) == ("", LOST, True)
    await frail.stores.assert_free(conversation)


@pytest.mark.promise("P5", "P7")
async def test_a_run_that_lost_its_log_and_its_owner_ends_after_every_event_that_was_read(
    frail: Nodes, redis: RedisServer
) -> None:
    engine = SteppedEngine("one ", "two ")
    dead = await frail.node(
        engine=engine, lease_seconds=1, beats=False, keeps_up=False, listens=False
    )
    conversation = await frail.stores.conversation()
    run = await dead.runs.send(frail.stores.send(conversation, "count"))
    engine.step()
    async with Reader(dead.runs, run) as reader:
        await reader.until_seq(1)
    redis.command("FLUSHALL")
    other = await frail.node(lease_seconds=1)
    await eventually(lambda: failed(frail, run.id))
    async with Reader(other.runs, run, 1) as behind:
        await behind.to_end()
    assert (behind.status, behind.error["earliest_seq"]) == (410, LOST_LOG_FIRST_SEQ)
    async with Reader(other.runs, run, LOST_LOG_FIRST_SEQ - 1) as late:
        assert (await late.to_end()).end() == LOST
    await frail.stores.assert_free(conversation)


async def failed(nodes: Nodes, run_id: str) -> bool:
    return all(run.id != run_id for run in await nodes.stores.active_runs())


@pytest.mark.promise("P9")
async def test_a_send_while_redis_is_unavailable_creates_no_run(
    frail: Nodes, redis: RedisServer
) -> None:
    node = await frail.node()
    conversation = await frail.stores.conversation()
    redis.kill()
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await node.runs.send(frail.stores.send(conversation, "one two", otid="mine"))
    assert await frail.stores.active_runs() == []
    redis.start()
    run = await node.runs.send(frail.stores.send(conversation, "one two", otid="mine"))
    assert (await node.runs.wait_until_settled(run)).status is RunStatus.COMPLETED


@pytest.mark.promise("P7")
async def test_a_run_whose_process_is_cut_off_from_redis_is_cancelled_when_it_is_back(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeats continue, so nobody takes its run over, and it ends the run when it can."""
    monkeypatch.setattr(service, "CANCEL_WAIT_SECONDS", 0.5)
    with Relay(nodes.log_url.removeprefix("unix://")) as relay:
        host, port = relay.address
        engine = SteppedEngine("one ", "two ")
        owner = await nodes.node(engine=engine, log_url=f"redis://{host}:{port}")
        other = await nodes.node()
        conversation = await nodes.stores.conversation()
        run = await owner.runs.send(nodes.stores.send(conversation, "count"))
        engine.step()
        async with Reader(other.runs, run) as reader:
            await reader.until_seq(1)
            relay.swallow()
            assert await other.runs.cancel([run]) == {run.id: "cancelling"}
            relay.cut()
            relay.resume()
            received = await reader.to_end()
        assert received.end() == {"stop_reason": "cancelled", "error_type": None}
        assert end_of(await nodes.stores.frames(run)) == received.end()
        await nodes.stores.assert_free(conversation)


@pytest.mark.promise("P7")
async def test_the_run_of_a_process_that_stays_cut_off_from_redis_is_ended_by_another(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "APPEND_RETRY_SECONDS", 0.2)
    with Relay(nodes.log_url.removeprefix("unix://")) as relay:
        host, port = relay.address
        engine = SteppedEngine("one ", "two ", "three ")
        cut_off = await nodes.node(engine=engine, log_url=f"redis://{host}:{port}")
        other = await nodes.node()
        conversation = await nodes.stores.conversation()
        run = await cut_off.runs.send(nodes.stores.send(conversation, "count"))
        engine.step()
        async with Reader(other.runs, run) as reader:
            await reader.until_seq(1)
            relay.swallow()
            engine.step()
            received = await reader.to_end()
        assert (received.text, received.end()) == (
            "one ",
            {"stop_reason": "error", "error_type": "stream_incomplete"},
        )
        relay.cut()
        relay.resume()
        await eventually(lambda: not cut_off.runs.has_pending_recoveries)
        assert await nodes.stores.frames(run) == received.frames
        await nodes.stores.assert_free(conversation)


@pytest.mark.promise("P7")
async def test_no_owner_is_declared_dead_before_live_owners_could_send_a_heartbeat(
    nodes: Nodes,
) -> None:
    records = nodes.stores.records
    clock = LeapClock()
    outage = Outage()
    ours = Ownership(faulty_records(records, outage), clock, 15)
    await ours.register()
    await records.owners.register("lapsed", 0)
    # A new process does not know yet which owners are alive.
    await ours.bury_dead_owners()
    assert await records.owners.is_alive("lapsed")
    for _ in range(6):
        await renew_lease(ours)
        clock.leap(3)
    # While the records were unavailable, no live owner could send a heartbeat.
    outage.down = {"owners.beat"}
    with pytest.raises(StoreUnavailableError):
        await renew_lease(ours)
    outage.down = set()
    await renew_lease(ours)
    for _ in range(4):
        clock.leap(3)
        await renew_lease(ours)
        await ours.bury_dead_owners()
        assert await records.owners.is_alive("lapsed")
    # The process itself was paused.
    clock.leap(20)
    await renew_lease(ours)
    await ours.bury_dead_owners()
    assert await records.owners.is_alive("lapsed")
    for _ in range(5):
        clock.leap(3)
        await renew_lease(ours)
    await ours.bury_dead_owners()
    assert not await records.owners.is_alive("lapsed")


@pytest.mark.promise("P7")
async def test_a_run_created_by_a_process_that_was_just_declared_dead_gets_its_end(
    nodes: Nodes,
) -> None:
    gate = Gate("runs.create")
    owner = await nodes.node(faults=gate, lease_seconds=1000, keeps_up=False)
    other = await nodes.node()
    conversation = await nodes.stores.conversation()
    sending = asyncio.create_task(owner.runs.send(nodes.stores.send(conversation, "[hang=1]")))
    async with asyncio.timeout(10):
        await gate.waiting.wait()
        await nodes.stores.records.owners.bury_all_but(other.runs.ownership.owner)
        await beat(owner.runs)
        gate.opened.set()
        run = await sending
    async with Reader(other.runs, run) as reader:
        assert (await reader.to_end()).end()["stop_reason"] == "error"
    await nodes.stores.assert_free(conversation)
