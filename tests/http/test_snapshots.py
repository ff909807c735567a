"""Snapshots: the messages of a run as of one of its events, and the way on from there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from reattach.domain.ids import DEFAULT_TENANT, RunId, Seq, Token, new_conversation_id, new_run_id
from reattach.domain.limits import REPLAY_SLICE_EVENTS
from reattach.http.stream.framing import EventSourceFraming
from reattach.log.base import Slice
from reattach.runs.following.follow import Target
from reattach.runs.service import RunService
from reattach.runs.snapshot.fold import Fold
from reattach.runs.snapshot.snapshots import FoldLimits, Snapshots
from reattach.wire.sse import DONE
from tests.support.asgi_server import OTHER_TENANT, serving, started
from tests.support.live_server import (
    Frame,
    LiveServer,
    hold_settlements,
    joined,
    listening,
    new_threads,
    to,
)
from tests.support.living_objects import living

pytestmark = pytest.mark.promise("P20")

TOOL = {"name": "look", "parameters": {"type": "object", "properties": {}}}
SCRIPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("[chunks=5]", {}),
    "reasoning": ("[think=3][chunks=3]", {}),
    "unicode": ("[unicode][think=10][chunks=10]", {}),
    "steps": ("[think=2][chunks=3][steps=3]", {}),
    "a tool": ("[think=1][tool=weather][chunks=3]", {}),
    "client tools": ("[chunks=2][client_tool=look][arguments={}]", {"client_tools": [TOOL]}),
    "no pings": ("[chunks=3]", {"include_pings": False}),
    "text only": (
        "[think=2][chunks=3][tool=weather][steps=2]",
        {"include_return_message_types": ["assistant_message"]},
    ),
    "reasoning only": (
        "[think=2][chunks=3]",
        {"include_return_message_types": ["reasoning_message"]},
    ),
    "nothing": ("[think=2][chunks=3]", {"include_return_message_types": []}),
    "a failure": ("[think=1][chunks=4][fail=3]", {}),
    "a failure before anything": ("[fail=0]", {}),
    "a stop": ("[chunks=2][stop=max_steps]", {}),
}


async def snapshot(live: LiveServer, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = await live.got(f"/v1/runs/{run_id}/snapshot")
    return found


async def after(live: LiveServer, run_id: str, seq: int) -> list[Frame]:
    return await live.streamed(f"/v1/runs/{run_id}/stream", {"starting_after": seq})


async def fold_of(live: LiveServer, run_id: str, frames: list[Frame]) -> list[dict[str, Any]]:
    """The messages that a snapshot shows of these events from the first on."""
    fold = Fold(await live.context.runs.by_id(DEFAULT_TENANT, run_id))
    events = [frame for frame in frames if frame.raw != DONE]
    if events:
        fold.add(Slice(Seq(1), Seq(len(events)), joined(events)))
    items: list[dict[str, Any]] = json.loads(fold.messages())
    return items


def shown(items: list[dict[str, Any]]) -> list[tuple[str, Any, Any]]:
    """The items of an answer, without those that were sent."""
    return [
        (item["message_type"], item["otid"], item.get("content", item.get("reasoning")))
        for item in items
        if item["message_type"] != "user_message"
    ]


def texts_by_otid(frames: list[Frame]) -> list[tuple[str, Any, Any]]:
    """The same, by a fold that knows only text and reasoning, as a page would write it."""
    parts: dict[tuple[str, str], str] = {}
    for frame in frames:
        event = frame.event
        if event["message_type"] in {"assistant_message", "reasoning_message"}:
            text = str(event.get("content", event.get("reasoning")))
            key = (event["message_type"], event["otid"])
            parts[key] = parts.get(key, "") + text
    return [(kind, otid, text) for (kind, otid), text in parts.items()]


@pytest.mark.promise("P4")
@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "whole parts"])
async def test_a_snapshot_at_every_event_and_the_events_after_it_are_the_whole_run(
    live: LiveServer, tokens: bool
) -> None:
    agent, thread = await new_threads(live)
    deltas = 2 * (2 + 3)
    message = "[think=2][chunks=3][steps=2]"
    run_id = await live.held_run(agent, thread, message, after=0, stream_tokens=tokens)
    taken = [await snapshot(live, run_id)]
    for count in range(1, deltas):
        live.gates.hold(agent, count)
        await live.gates.reached(agent, count)
        await live.logged(run_id)
        taken.append(await snapshot(live, run_id))
    await live.ended(run_id)
    whole = await live.streamed(f"/v1/runs/{run_id}/stream")
    assert len({one["seq"] for one in taken}) > (deltas - 1 if tokens else 2)
    for one in taken:
        seq = one["seq"]
        assert (one["status"], one["stop_reason"]) == ("running", None)
        assert (one["run_id"], one["conversation_id"]) == (run_id, thread)
        assert one["messages"][0]["content"] == message
        assert shown(one["messages"]) == texts_by_otid(whole[:seq])
        assert one["messages"] == await fold_of(live, run_id, whole[:seq])
        assert joined(await after(live, run_id, seq)) == joined(whole[seq:])
    last = await snapshot(live, run_id)
    assert (last["status"], last["stop_reason"]) == ("completed", "end_turn")
    assert last["seq"] == len(whole) - 1
    assert joined(await after(live, run_id, last["seq"])) == DONE


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "whole parts"])
@pytest.mark.parametrize("script", SCRIPTS)
async def test_the_last_snapshot_of_a_run_has_the_messages_of_the_records(
    live: LiveServer, script: str, tokens: bool
) -> None:
    message, body = SCRIPTS[script]
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    run_id = await live.background_run(thread, message, **body | {"stream_tokens": tokens})
    await live.ended(run_id)
    found = await snapshot(live, run_id)
    types = body.get("include_return_message_types")
    expected = [
        item
        for item in await live.got(f"/v1/runs/{run_id}/messages")
        if types is None or item["message_type"] in [*types, "user_message"]
    ]
    assert found["messages"] == expected
    frames = await live.streamed(f"/v1/runs/{run_id}/stream")
    assert found["seq"] == len(frames) - 1
    # A live run shows the same, except the step of what was sent, which is known at the end.
    folded = await fold_of(live, run_id, frames)
    assert shown(folded) == shown(found["messages"])
    assert [item["message_type"] for item in folded][:1] == ["user_message"]


async def test_hidden_messages_are_in_no_snapshot_and_the_others_keep_their_otids(
    live: LiveServer,
) -> None:
    agent, thread = await new_threads(live)
    types = {"include_return_message_types": ["assistant_message"]}
    run_id = await live.held_run(agent, thread, "[think=2][chunks=4]", after=4, **types)
    before = await snapshot(live, run_id)
    await live.ended(run_id)
    frames = await live.streamed(f"/v1/runs/{run_id}/stream")
    assert shown(before["messages"]) == texts_by_otid(frames[: before["seq"]])
    at_end = await snapshot(live, run_id)
    assert shown(at_end["messages"]) == texts_by_otid(frames[:-1])
    stored = await live.got(f"/v1/runs/{run_id}/messages")
    assert "reasoning_message" in {item["message_type"] for item in stored}


@pytest.mark.parametrize("shows", [True, False], ids=["shown", "hidden"])
async def test_a_summary_is_in_a_snapshot_if_the_log_has_it(live: LiveServer, shows: bool) -> None:
    body = {"context_window_limit": 100}
    agent, thread = await new_threads(live, **body)
    live.gates.open(agent)
    asked = {"include_compaction_messages": shows}
    for number in range(5):
        words = " ".join(f"word{number}" for _ in range(60))
        run_id = await live.background_run(thread, words, **asked)
        await live.ended(run_id)
        frames = await live.streamed(f"/v1/runs/{run_id}/stream")
        kinds = [one.event["message_type"] for one in frames[:-1]]
        stored = [one["message_type"] for one in await live.got(f"/v1/runs/{run_id}/messages")]
        found = [one["message_type"] for one in (await snapshot(live, run_id))["messages"]]
        assert ("summary_message" in found) is ("summary_message" in kinds)
        if "summary_message" in stored:
            assert ("summary_message" in found) is shows
            break
    else:
        raise AssertionError("No run of the conversation was compacted.")


@pytest.mark.promise("P12")
async def test_a_thousand_snapshots_of_a_live_run_fold_each_event_once(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=1500]", after=1000)
    runs = live.context.runs
    target = await runs.target(DEFAULT_TENANT, run_id)
    folded: list[int] = []
    add = Fold.add

    def count(fold: Fold, piece: Slice) -> None:
        folded.extend(range(piece.first_seq, piece.last_seq + 1))
        add(fold, piece)

    with patch.object(Fold, "add", count):
        first = await asyncio.gather(*(runs.snapshots.of(target) for _ in range(500)))
        live.gates.hold(agent, 1400)
        rest = [await runs.snapshots.of(target) for _ in range(400)]
        await live.gates.reached(agent, 1400)
        await live.logged(run_id)
        rest += await asyncio.gather(*(runs.snapshots.of(target) for _ in range(100)))
    assert {one.seq for one in first} == {1001}
    assert rest[-1].seq == 1401
    assert folded == list(range(1, 1402))
    assert len(set(first)) == 1
    assert runs.snapshots.kept == 1
    await live.ended(run_id)
    await _until_dropped(runs.snapshots)


async def _until_dropped(snapshots: Snapshots, count: int = 0) -> None:
    async with asyncio.timeout(20):
        while snapshots.kept > count or snapshots._tasks:
            await asyncio.sleep(0)


def _snapshots(runs: RunService, limits: FoldLimits) -> Snapshots:
    return Snapshots(runs._records, runs.watch, runs.follow, runs.is_settled_in_time, limits)


@pytest.mark.promise("P12")
@pytest.mark.parametrize(
    ("limits", "kept"), [(FoldLimits(runs=2), 2), (FoldLimits(size_bytes=1), 0)]
)
async def test_folds_beyond_the_limits_are_dropped_the_oldest_first(
    live: LiveServer, limits: FoldLimits, kept: int
) -> None:
    runs = live.context.runs
    snapshots = _snapshots(runs, limits)
    agents = []
    for _ in range(4):
        agent, thread = await new_threads(live)
        run_id = await live.held_run(agent, thread, "[chunks=5]", after=3)
        agents.append((agent, run_id))
        await snapshots.of(await runs.target(DEFAULT_TENANT, run_id))
    await _until_dropped(snapshots, kept)
    assert list(snapshots._kept) == [run_id for _, run_id in agents[4 - kept :]]
    assert snapshots._kept_bytes <= limits.size_bytes
    for _, run_id in agents:
        await live.ended(run_id)
    await _until_dropped(snapshots)
    assert snapshots._kept_bytes == 0


@pytest.mark.promise("P13")
async def test_a_fold_that_nobody_asks_for_is_dropped_by_the_timer_of_all_readers(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path, ping_interval_seconds=0.2) as live:
        agent, thread = await new_threads(live)
        run_id = await live.held_run(agent, thread, "[chunks=5]", after=3)
        await snapshot(live, run_id)
        snapshots = live.context.runs.snapshots
        assert snapshots.kept == 1
        await _until_dropped(snapshots)
        assert not live.context.runs.watch._readers
        assert (await snapshot(live, run_id))["seq"] == 4


@pytest.mark.promise("P3")
async def test_a_snapshot_shows_the_end_once_the_record_says_how_the_run_ended(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=3]", after=2)
    settlements = hold_settlements(live, monkeypatch)
    live.gates.open(agent)
    await asyncio.wait_for(settlements.reached.wait(), 20)
    asked = asyncio.create_task(snapshot(live, run_id))
    for _ in range(20):
        await live.run(run_id)
    assert not asked.done()
    settlements.go_on.set()
    found = await asyncio.wait_for(asked, 20)
    assert (found["status"], found["stop_reason"]) == ("completed", "end_turn")
    assert found["messages"] == await live.got(f"/v1/runs/{run_id}/messages")


@pytest.mark.promise("P8", "P11", "S10")
async def test_a_snapshot_is_refused_as_a_resume_is_and_starts_nothing(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    foreground = (await live.streamed(to(thread), {"input": "hello"}))[0].event["run_id"]
    ended = await live.background_run(thread, "hello", otid="an-otid")
    await live.ended(ended)
    rows = live.rows()
    runs, conversations = "/v1/runs", "/v1/conversations"
    places: list[tuple[str, dict[str, str]]] = [
        (f"{runs}/{new_run_id()}", {}),
        (f"{runs}/nonsense", {}),
        (f"{runs}/{foreground}", {}),
        (f"{conversations}/{thread}", {}),
        (f"{conversations}/{thread}", {"run_id": new_run_id()}),
        (f"{conversations}/{thread}", {"otid": "unknown"}),
        (f"{conversations}/{new_conversation_id()}", {}),
        (f"{conversations}/default", {"agent_id": agent}),
        (f"{conversations}/default", {}),
        (f"{conversations}/nonsense", {}),
    ]
    for path, query in places:
        response = await live.client.get(f"{path}/snapshot", params=query)
        async with live.stream(f"{path}/stream", query) as stream:
            refused = await stream.error()
            assert response.status_code == stream.status_code, response.text
        assert response.json() == refused
    for query in ({"run_id": ended}, {"otid": "an-otid"}):
        found = await live.got(f"{conversations}/{thread}/snapshot", **query)
        assert found["run_id"] == ended
    for name in ("run_id", "otid"):
        response = await live.client.get(f"{conversations}/{thread}/snapshot?{name}=")
        assert response.status_code == 422
    assert live.rows() == rows


@pytest.mark.promise("S2", "S3")
async def test_the_active_run_of_a_conversation_is_found_as_by_its_stream(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    default = await live.held_run(agent, "default", "[chunks=4]", after=2, agent_id=agent)
    named = await live.held_run(agent, thread, "[chunks=4]", after=2)
    for path, query, run_id, conversation in [
        (thread, {}, named, thread),
        ("default", {"agent_id": agent}, default, None),
        (agent, {}, default, None),
    ]:
        found = await live.got(f"/v1/conversations/{path}/snapshot", **query)
        assert (found["run_id"], found["conversation_id"]) == (run_id, conversation)
    for run_id in (default, named):
        await live.ended(run_id)


@pytest.mark.promise("S12", "S13")
async def test_a_stream_by_get_may_begin_with_a_snapshot(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[think=2][chunks=4]", after=4)
    for path, prefix in [(f"/v1/runs/{run_id}", ""), (f"/v1/conversations/{thread}", f"{run_id}:")]:
        expected = await live.got(f"{path}/snapshot")
        query = {"from": "snapshot", "starting_after": 1}
        async with live.stream(f"{path}/stream", query, method="GET") as stream:
            stream.ids = None  # Else it removes the lines of ``EventSource``.
            lines = (await stream.next()).raw.decode().split("\n")
            assert lines[:3] == ["retry: 1000", "event: snapshot", f"id: {prefix}{expected['seq']}"]
            assert json.loads(lines[3].removeprefix("data: ")) == expected
            assert stream.headers["x-stream-starts-after"] == str(expected["seq"])
        # The browser reconnects with its id and the same address.
        headers = {"Last-Event-ID": f"{prefix}2"}
        async with live.stream(f"{path}/stream", query, method="GET", headers=headers) as stream:
            stream.ids = None
            assert (await stream.next()).raw.startswith(f"retry: 1000\nid: {prefix}3\n".encode())
    await live.ended(run_id)
    whole = await live.streamed(f"/v1/runs/{run_id}/stream")
    response = await live.client.get(f"/v1/runs/{run_id}/stream", params={"from": "snapshot"})
    last = json.dumps(await snapshot(live, run_id), ensure_ascii=False, separators=(",", ":"))
    end = len(whole) - 1
    assert response.text == (
        f"retry: 1000\nevent: snapshot\nid: {end}\ndata: {last}\n\n"
        f"event: done\nid: {end}-done\ndata: [DONE]\n\n"
    )


@pytest.mark.promise("P12")
async def test_an_idle_stream_does_not_keep_the_snapshot_with_which_it_began(
    live: LiveServer,
) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=4]", after=2)
    path, query = f"/v1/runs/{run_id}/stream", {"from": "snapshot"}
    earlier = living(EventSourceFraming)
    async with live.stream(path, query, method="GET") as stream:
        stream.ids = None
        await stream.next()
        framings = [one for one in living(EventSourceFraming) if one not in earlier]
        assert framings
        assert not any(framing.take_opening() for framing in framings)
    await live.ended(run_id)


@pytest.mark.promise("P5", "P14")
async def test_a_snapshot_without_its_events_is_refused_as_gone(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    live_run = await live.held_run(agent, thread, "[chunks=6]", after=5)
    await live.context.runs.log.trim(live_run, Seq(3))
    response = await live.client.get(f"/v1/runs/{live_run}/snapshot")
    assert (response.status_code, response.json()["earliest_seq"]) == (410, 3)
    await live.ended(live_run)
    # The records have all of it, and what follows can be followed.
    found = await snapshot(live, live_run)
    assert found["messages"] == await live.got(f"/v1/runs/{live_run}/messages")
    assert joined(await after(live, live_run, found["seq"])) == DONE
    await live.context.runs.delete_logs([live_run])
    await live.context.records.runs.mark_log_deleted([RunId(live_run)], live.clock.now())
    response = await live.client.get(f"/v1/runs/{live_run}/snapshot")
    assert response.status_code == 410
    assert "expired_at" in response.json()


@pytest.mark.promise("P5", "P14")
@pytest.mark.parametrize("gone", ["emptied", "deleted", "deleted, but forked in part"])
@pytest.mark.parametrize("script", ["steps", "a tool", "text only", "a failure", "no pings"])
async def test_a_snapshot_has_the_answer_after_its_conversation_is_emptied_or_deleted(
    live: LiveServer, script: str, gone: str
) -> None:
    message, body = SCRIPTS[script]
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    if gone == "emptied":
        thread, body = "default", {**body, "agent_id": agent}
    run_id = await live.background_run(thread, message, **body)
    await live.ended(run_id)
    before = await snapshot(live, run_id)
    frames = await live.streamed(f"/v1/runs/{run_id}/stream")
    if gone == "emptied":
        response = await live.client.patch(f"/v1/agents/{agent}/reset-messages")
    else:
        if gone != "deleted":
            sent = before["messages"][0]["id"]
            path = f"/v1/conversations/{thread}/fork?message_id={sent}"
            assert (await live.client.post(path)).status_code == 200
        response = await live.client.delete(f"/v1/conversations/{thread}")
    assert response.status_code == 200, response.text
    found = await snapshot(live, run_id)
    assert found["messages"] == await fold_of(live, run_id, frames)
    assert shown(found["messages"]) == shown(before["messages"]) != []
    assert found | {"messages": []} == before | {"messages": []}
    assert joined(await after(live, run_id, found["seq"])) == joined(frames[found["seq"] :])
    # Where neither the records nor the log have the answer, it is gone, as for the stream.
    await live.context.runs.log.trim(run_id, Seq(3))
    gone_now = await live.client.get(f"/v1/runs/{run_id}/snapshot")
    assert (gone_now.status_code, gone_now.json()["earliest_seq"]) == (410, 3)


@pytest.mark.promise("P5")
async def test_a_fold_of_events_that_were_lost_is_not_shown(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        agent = (await server.agent())["id"]
        thread = (await server.conversation(agent))["id"]
        run_id = await started(server, thread, "[chunks=9][hang=2]", stream_tokens=True)
        log = server.context.runs.log
        async with asyncio.timeout(20), log.follow(run_id) as tail:
            while tail.last_seq < 2:
                await asyncio.sleep(0)
        assert (await server.got(f"/v1/runs/{run_id}/snapshot"))["seq"] >= 2
        await log.open(run_id, Token(2), first_seq=Seq(100))
        response = await server.client.get(f"/v1/runs/{run_id}/snapshot")
        assert (response.status_code, response.json()["code"]) == (410, "events_lost")
        assert response.json()["earliest_seq"] == 100


@pytest.mark.promise("P11")
async def test_another_tenant_sees_no_snapshot(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        agent, thread = await new_threads(live)
        run_id = await live.held_run(agent, thread, "[chunks=4]", after=2)
        async with await live.as_tenant(OTHER_TENANT) as other:
            for path in (f"/v1/runs/{run_id}", f"/v1/conversations/{thread}"):
                strange = await other.get(f"{path}/snapshot")
                unknown = path.replace(run_id, new_run_id())
                assert strange.status_code == (await other.get(f"{unknown}/snapshot")).status_code
                assert run_id not in strange.text or path.endswith(run_id)
                assert strange.status_code in {400, 404}
            unauthorized = await live.client.get(f"/v1/runs/{run_id}/snapshot")
            assert unauthorized.status_code == 401
            async with await live.as_tenant(DEFAULT_TENANT) as ours:
                found = await ours.get(f"/v1/runs/{run_id}/snapshot")
                assert found.json()["run_id"] == run_id
                assert found.headers["cache-control"] == "no-store"


async def test_a_cancelled_reader_of_a_snapshot_leaves_the_fold_to_the_others(
    live: LiveServer,
) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[size=400][chunks=800]", after=700)
    runs = live.context.runs
    target = Target.of(await runs.by_id(DEFAULT_TENANT, run_id))
    calls = [asyncio.create_task(runs.snapshots.of(target)) for _ in range(8)]
    for turns, call in enumerate(calls[:7]):
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
    await asyncio.wait(calls, timeout=20)
    last = await calls[7]
    assert last.seq == 701 <= REPLAY_SLICE_EVENTS
    expected = await live.got(f"/v1/runs/{run_id}/snapshot")
    assert json.loads(last.encode()) == expected
    await live.ended(run_id)
    await _until_dropped(runs.snapshots)
