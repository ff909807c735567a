"""Snapshots, and many runs over one connection, on a process that does not own the runs."""

from __future__ import annotations

import asyncio
import json

import pytest
from typing_extensions import override

from reattach.domain.clock import SystemClock
from reattach.domain.ids import DEFAULT_TENANT, RunId, Seq
from reattach.http.stream.body import Body
from reattach.http.stream.many import Cursor, ManyDelivery, ManyJob
from reattach.log.commit_times import encode_stretch
from reattach.runs.following.follow import Target
from reattach.runs.history import timelines
from reattach.runs.snapshot.sharing import Snapshot
from tests.cluster.nodes import Nodes
from tests.support.engines import SteppedEngine
from tests.support.in_process_readers import Reader
from tests.support.stores import eventually

WAIT_SECONDS = 20.0


def text_of(snapshot: Snapshot) -> str:
    items = json.loads(snapshot.encode())["messages"]
    return "".join(one["content"] for one in items if one["message_type"] == "assistant_message")


@pytest.mark.promise("P20")
async def test_every_process_gives_the_same_snapshots_of_a_run(nodes: Nodes) -> None:
    engine = SteppedEngine("one ", "two ", "three ")
    owner, other = await nodes.node(engine=engine), await nodes.node()
    conversation = await nodes.stores.conversation()
    run = await owner.runs.send(nodes.stores.send(conversation, "count"))
    for text in ("one ", "one two "):
        engine.step()
        seq = len(text.split())
        async with Reader(other.runs, run) as reader:
            await reader.until_seq(seq)
        target = Target.of(await other.runs.by_id(DEFAULT_TENANT, run.id))
        shown = [await node.runs.snapshots.of(target) for node in (owner, other)]
        assert shown[0].encode() == shown[1].encode()
        assert (shown[0].seq, text_of(shown[0])) == (seq, text)
    async with Reader(other.runs, target, shown[1].seq) as reader:
        engine.step(2)
        await reader.to_end()
    # The target is of the time before the end.
    last = [await node.runs.snapshots.of(target) for node in (owner, other)]
    assert last[0].encode() == last[1].encode()
    assert (last[0].status, text_of(last[0])) == ("completed", "one two three ")
    assert last[0].seq == reader.received.cursor
    await eventually(lambda: not owner.runs.snapshots.kept and not other.runs.snapshots.kept)


class Collected(Body):
    """A body in memory."""

    def __init__(self) -> None:
        super().__init__(WAIT_SECONDS)
        self.bytes = b""
        self.is_whole = False
        self.changed = asyncio.Event()

    @override
    async def begin(self) -> None: ...

    @override
    async def write(self, body: bytes) -> None:
        self.bytes += body
        self.changed.set()

    @override
    async def finish(self) -> None:
        self.is_whole = True

    @override
    def abort(self) -> None: ...


@pytest.mark.promise("P21")
async def test_runs_of_several_owners_are_followed_over_one_connection(nodes: Nodes) -> None:
    engines = [SteppedEngine("one ", "two "), SteppedEngine("three ", "four ")]
    owners = [await nodes.node(engine=engine) for engine in engines]
    other = await nodes.node()
    runs = []
    for owner, engine in zip(owners, engines, strict=True):
        conversation = await nodes.stores.conversation()
        runs.append(await owner.runs.send(nodes.stores.send(conversation, "count")))
        engine.step()
    job = ManyJob(
        other.runs,
        DEFAULT_TENANT,
        SystemClock(),
        [Cursor(run.id, 0) for run in runs],
        named_pings=False,
        stall_seconds=WAIT_SECONDS,
    )
    body = Collected()
    task = asyncio.create_task(ManyDelivery(job, None).run(body))
    async with asyncio.timeout(WAIT_SECONDS):
        while not all(f"id: {run.id}:1\n".encode() in body.bytes for run in runs):
            body.changed.clear()
            await body.changed.wait()
        for engine in engines:
            engine.step(2)
        await task
    assert body.is_whole
    for run in runs:
        frames = await nodes.stores.frames(run)
        found = [one for one in body.bytes.split(b"id: ") if one.startswith(run.id.encode())]
        expected = [b"%b:%d\n%b" % (run.id.encode(), seq, one) for seq, one in enumerate(frames, 1)]
        done = f"{run.id}:{len(frames)}-done\ndata: [DONE]\n\n".encode()
        assert [one.removesuffix(b"event: done\n") for one in found] == [*expected, done]


async def test_another_process_shows_when_the_events_of_an_open_run_came(nodes: Nodes) -> None:
    engine = SteppedEngine("one ", "two ", "three ")
    owner, other = await nodes.node(engine=engine), await nodes.node()
    conversation = await nodes.stores.conversation()
    run = await owner.runs.send(nodes.stores.send(conversation, "count"))
    target = Target.of(run)
    for seq in (1, 2):
        engine.step()
        async with Reader(other.runs, run) as reader:
            await reader.until_seq(seq)
        shown = [await node.runs.history.timelines.stretches(target) for node in (other, owner)]
        assert shown[0] == shown[1]
        assert [one.last_seq for one in shown[0]] == [seq]
    # A look that was on its way when the run ended does not replace what its end wrote.
    early = owner.runs.open_runs.drivers[run.id].stretch
    assert early is not None
    async with Reader(other.runs, run, 2) as reader:
        engine.step(2)
        await reader.to_end()
    await owner.records.timelines.keep(run.id, run.token, encode_stretch(early))
    ended = await other.runs.by_id(DEFAULT_TENANT, run.id)
    (stretch,) = await other.runs.history.timelines.stretches(Target.of(ended))
    assert ended.first_event_at == stretch.at(Seq(1))
    assert ended.event_count == stretch.last_seq == reader.received.cursor
    frames = await nodes.stores.frames(ended)
    assert ended.log_bytes == sum(map(len, frames))


async def test_an_owner_that_does_not_answer_delays_one_look_and_no_more(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timelines, "ANSWER_SECONDS", 0.05)
    engine = SteppedEngine("one ", "two ")
    owner, other = await nodes.node(engine=engine, listens=False), await nodes.node()
    conversation = await nodes.stores.conversation()
    run = await owner.runs.send(nodes.stores.send(conversation, "count"))
    asked = 0
    ask = other.records.timelines.ask

    async def counted(run_id: RunId) -> None:
        nonlocal asked
        asked += 1
        await ask(run_id)

    looking = other.runs.history.timelines
    monkeypatch.setattr(looking._records.timelines, "ask", counted)
    for _ in range(3):
        assert await looking.stretches(Target.of(run)) == []
    assert asked == 1
    engine.step(3)
    await owner.runs.wait_until_settled(run)
