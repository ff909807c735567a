"""The events of a run as a page looks into them: around a position, and folded up to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from reattach.domain.ids import DEFAULT_TENANT, Seq
from reattach.log.base import Slice
from reattach.runs.inspection import frames as inspecting
from reattach.runs.snapshot.fold import Fold
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import DONE, Frame, LiveServer, listening, new_threads

SCRIPT = "[think=2][chunks=4][tool=weather][steps=2]"


async def ended_run(live: LiveServer, message: str = SCRIPT, **body: Any) -> str:
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    run_id = await live.background_run(thread, message, stream_tokens=True, **body)
    await live.ended(run_id)
    return run_id


async def streamed(live: LiveServer, run_id: str) -> list[Frame]:
    frames = await live.streamed(f"/v1/runs/{run_id}/stream", {})
    return [frame for frame in frames if frame.raw != DONE]


async def frames(live: LiveServer, run_id: str, **query: int) -> dict[str, Any]:
    found: dict[str, Any] = await live.got(f"/v1/runs/{run_id}/frames", **query)
    return found


def seqs(page: dict[str, Any]) -> list[int]:
    return [item["seq"] for item in page["items"]]


async def test_the_frames_of_an_ended_run_are_the_bytes_that_its_readers_got(
    live: LiveServer,
) -> None:
    run_id = await ended_run(live)
    stream = await streamed(live, run_id)
    page = await frames(live, run_id, after_seq=0, limit=500)
    assert (page["first_seq"], page["last_seq"]) == (1, len(stream))
    assert [
        (item["seq"], item["type"], item["bytes"], item["frame"].encode()) for item in page["items"]
    ] == [(seq, one.kind, len(one.raw), one.raw) for seq, one in enumerate(stream, 1)]


async def test_pages_before_and_after_a_position_meet_there(live: LiveServer) -> None:
    run_id = await ended_run(live)
    last = (await frames(live, run_id))["last_seq"]
    assert seqs(await frames(live, run_id, limit=3)) == [last - 2, last - 1, last]
    assert seqs(await frames(live, run_id, before_seq=6, limit=3)) == [3, 4, 5]
    assert seqs(await frames(live, run_id, after_seq=5, limit=3)) == [6, 7, 8]
    assert seqs(await frames(live, run_id, after_seq=2, before_seq=5)) == [3, 4]
    assert seqs(await frames(live, run_id, before_seq=3, limit=10)) == [1, 2]
    assert seqs(await frames(live, run_id, after_seq=0, limit=2)) == [1, 2]
    for nothing in ({"after_seq": last}, {"after_seq": 10**9}, {"before_seq": 1}):
        page = await frames(live, run_id, **nothing)
        assert (page["items"], page["last_seq"]) == ([], last)


async def test_an_open_run_shows_the_frames_it_has_and_waits_for_none(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=9]", after=3)
    page = await frames(live, run_id)
    assert seqs(page) == list(range(1, page["last_seq"] + 1))
    assert (await frames(live, run_id, after_seq=page["last_seq"]))["items"] == []
    await live.ended(run_id)
    assert (await frames(live, run_id))["last_seq"] > page["last_seq"]


async def test_a_page_is_bounded_in_bytes_but_never_empty(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await ended_run(live)
    everything = await frames(live, run_id, after_seq=0)
    sizes = [item["bytes"] for item in everything["items"]]
    monkeypatch.setattr(inspecting, "PAGE_BYTES", sizes[0] + sizes[1])
    assert seqs(await frames(live, run_id, after_seq=0)) == [1, 2]
    monkeypatch.setattr(inspecting, "PAGE_BYTES", sizes[-1] + sizes[-2])
    last = everything["last_seq"]
    assert seqs(await frames(live, run_id)) == [last - 1, last]
    monkeypatch.setattr(inspecting, "PAGE_BYTES", 1)
    assert seqs(await frames(live, run_id)) == [last]
    assert seqs(await frames(live, run_id, after_seq=4)) == [5]


@pytest.mark.parametrize("look", ["frames", "snapshot?seq=1"])
async def test_a_run_in_the_foreground_can_be_looked_into(live: LiveServer, look: str) -> None:
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    sent = await live.streamed(f"/v1/conversations/{thread}/messages", {"input": "hello"})
    run_id = sent[0].event["run_id"]
    assert (await live.client.get(f"/v1/runs/{run_id}/{look}")).status_code == 200


@pytest.mark.promise("P20")
@pytest.mark.parametrize("is_open", [False, True], ids=["ended", "open"])
async def test_the_snapshot_as_of_an_event_is_the_fold_of_the_events_up_to_it(
    live: LiveServer, is_open: bool
) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[think=3][chunks=6]", after=7)
    if not is_open:
        await live.ended(run_id)
    run = await live.context.runs.by_id(DEFAULT_TENANT, run_id)
    page = await frames(live, run_id, after_seq=0)
    raw = [item["frame"].encode() for item in page["items"]]
    for seq in range(len(raw)):
        fold = Fold(run)
        if seq:
            fold.add(Slice(Seq(1), Seq(seq), b"".join(raw[:seq])))
        found = await live.got(f"/v1/runs/{run_id}/snapshot", seq=seq)
        assert (found["seq"], found["status"], found["stop_reason"]) == (seq, "running", None)
        assert found["messages"] == json.loads(fold.messages())


async def test_a_snapshot_as_of_an_event_after_the_end_is_that_of_the_end(live: LiveServer) -> None:
    run_id = await ended_run(live)
    newest = await live.got(f"/v1/runs/{run_id}/snapshot")
    for seq in (newest["seq"], newest["seq"] + 1, 2**53 - 1):
        assert await live.got(f"/v1/runs/{run_id}/snapshot", seq=seq) == newest


async def test_deleted_events_are_reported_as_by_the_stream(live: LiveServer) -> None:
    run_id = await ended_run(live)
    await live.context.runs.log.trim(run_id, Seq(4))
    stream = await live.client.post(f"/v1/runs/{run_id}/stream", json={})
    frames_from_start = await live.client.get(f"/v1/runs/{run_id}/frames?after_seq=0")
    assert (frames_from_start.status_code, frames_from_start.json()["code"]) == (410, "expired")
    assert frames_from_start.json() == stream.json()
    assert (await live.client.get(f"/v1/runs/{run_id}/snapshot?seq=5")).json() == stream.json()
    assert seqs(await frames(live, run_id, before_seq=6)) == [4, 5]
    await live.context.runs.log.delete(run_id)
    stream = await live.client.post(f"/v1/runs/{run_id}/stream", json={})
    for look in ("frames", "snapshot?seq=1"):
        gone = await live.client.get(f"/v1/runs/{run_id}/{look}")
        assert (gone.status_code, gone.json()) == (410, stream.json())


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=501",
        "after_seq=x",
        "before_seq=1e99",
        "after_seq=99999999999999999",
        "after_seq=-1",
        "before_seq=-1",
    ],
)
async def test_bad_positions_are_refused(live: LiveServer, query: str) -> None:
    run_id = await ended_run(live)
    refused = await live.client.get(f"/v1/runs/{run_id}/frames?{query}")
    assert refused.status_code == 422
    assert query.partition("=")[0] in refused.text
    assert (await live.client.get(f"/v1/runs/{run_id}/snapshot?seq=-1")).status_code == 422


@pytest.fixture
async def apart(tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path) as live:
        yield live


@pytest.mark.promise("P12")
async def test_another_tenant_finds_no_frames_and_a_token_only_those_of_its_run(
    apart: LiveServer,
) -> None:
    run_id, other_run = await ended_run(apart), await ended_run(apart)
    issued = await apart.context.records.keys.create(DEFAULT_TENANT, "own")
    headers = {"Authorization": f"Bearer {issued[1]}"}
    made = await apart.client.post(
        "/v1/tokens", json={"run_id": run_id, "scope": "read"}, headers=headers
    )
    token = {"Authorization": f"Bearer {made.json()['token']}"}
    async with await apart.as_tenant(OTHER_TENANT) as other:
        for look in ("frames", "snapshot?seq=1"):
            assert (await other.get(f"/v1/runs/{run_id}/{look}")).status_code == 404
            own = await apart.client.get(f"/v1/runs/{run_id}/{look}", headers=token)
            assert own.status_code == 200, own.text
            refused = await apart.client.get(f"/v1/runs/{other_run}/{look}", headers=token)
            assert refused.status_code == 403
