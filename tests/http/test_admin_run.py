"""Everything about one run, for operators: its attempts, calls, readers and cut-offs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import DEFAULT_TENANT, AgentId, ConversationId, Seq, TenantId, new_run_id
from reattach.records.base import KeyScope, Thread
from tests.http.test_admin_processes import with_scopes
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import LiveServer, listening, new_threads, sent, thread_with
from tests.support.record_samples import a_run
from tests.support.stores import eventually

PING_SECONDS = 0.2
NAMED = {"User-Agent": "phone/3.1 (a comment)"}


@pytest.fixture
async def apart(tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A server for a test that makes keys."""
    async with listening(tmp_path, ping_interval_seconds=PING_SECONDS) as live:
        yield live


async def shown(live: LiveServer, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = await live.got(f"/v1/admin/runs/{run_id}")
    return found


async def ended_run(live: LiveServer, message: str) -> str:
    _, thread = await thread_with(live)
    run_id = await live.background_run(thread, message)
    await live.ended(run_id)
    return run_id


async def test_an_ended_run_shows_its_steps_with_their_times_and_tokens(live: LiveServer) -> None:
    run_id = await ended_run(live, "[think=2][chunks=3][steps=2]")
    run = await shown(live, run_id)
    steps = await live.got(f"/v1/runs/{run_id}/steps", order="asc")
    assert [one["id"] for one in run["steps"]] == [one["id"] for one in steps]
    for step, one in zip(run["steps"], steps, strict=True):
        assert step["usage"]["total_tokens"] == one["total_tokens"]
        assert step["model"] == "scripted/echo"
        assert run["created_at"] <= step["began_at"] <= step["ended_at"] <= run["completed_at"]
    frames = await live.got(f"/v1/runs/{run_id}/frames", limit=1)
    assert (run["first_seq"], run["last_seq"]) == (frames["first_seq"], frames["last_seq"])
    assert (run["log"], run["log_deleted_at"]) == ("closed", None)
    assert run["usage"]["step_count"] == 2
    (attempt,) = run["attempt_list"]
    assert attempt == {
        "number": 1,
        "owner": live.context.runs.ownership.owner,
        "token": 1,
        "began_at": run["created_at"],
        "ended_at": run["completed_at"],
        "after_seq": 0,
        "first_seq": 1,
        "way": None,
        "interruption": None,
    }
    (item,) = (await live.got("/v1/admin/runs", query=run_id))["items"]
    assert {name: run[name] for name in item} == item


async def test_tool_calls_have_the_events_at_which_they_began_and_returned(
    live: LiveServer,
) -> None:
    run_id = await ended_run(live, "[tool=weather][chunks=2]")
    run = await shown(live, run_id)
    frames = (await live.got(f"/v1/runs/{run_id}/frames", after_seq=0))["items"]
    (call,) = run["tool_calls"]
    returned = next(one for one in frames if one["type"] == "tool_return_message")
    called = [one for one in frames if one["type"] == "tool_call_message"][-1]
    assert (call["name"], call["status"]) == ("weather", "success")
    assert (call["began_seq"], call["ended_seq"]) == (called["seq"], returned["seq"])
    assert (call["began_at"], call["ended_at"]) == (called["at"], returned["at"])


async def test_a_call_that_waits_for_its_client_needs_an_answer(live: LiveServer) -> None:
    _, thread = await thread_with(live)
    tools = [{"name": "look", "parameters": {"type": "object", "properties": {}}}]
    frames = await sent(live, thread, "[client_tool=look]", client_tools=tools)
    run = await shown(live, str(frames[0].event["run_id"]))
    (call,) = run["tool_calls"]
    assert (call["name"], call["status"], call["ended_seq"]) == ("look", "needs_approval", None)


async def test_an_open_run_shows_its_readers_and_grows_with_its_events(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=9]", after=3)
    readers = live.context.runs.readers
    path = f"/v1/runs/{run_id}/stream"
    async with live.stream(path, {}, headers=NAMED):
        await eventually(lambda: any(one.cursor > 0 for one in readers.of_run(run_id)))
        run = await shown(live, run_id)
    (reader,) = run["readers_list"]
    assert (reader["client"], reader["transport"], reader["lag_events"]) == ("phone/3.1", "post", 0)
    assert reader["cursor"] == run["last_seq"]
    assert reader["process"] == run["owner"]
    assert (run["log"], run["usage"], run["readers"]) == ("open", None, 1)
    (step,) = run["steps"]
    assert step["usage"] is None
    assert step["began_at"]
    await live.ended(run_id)
    later = await shown(live, run_id)
    assert later["last_seq"] > run["last_seq"]
    assert later["steps"][0]["id"] == step["id"]
    assert later["steps"][0]["usage"]


async def test_a_run_without_its_log_shows_what_the_records_have(live: LiveServer) -> None:
    run_id = await ended_run(live, "[chunks=3]")
    await live.context.runs.log.delete(run_id)
    lost = await shown(live, run_id)
    assert (lost["log"], lost["last_seq"], lost["tool_calls"]) == ("lost", None, [])
    await live.context.records.runs.mark_log_deleted([run_id], live.clock.now())  # type: ignore[list-item]
    gone = await shown(live, run_id)
    assert gone["log"] == "deleted"
    assert gone["log_deleted_at"]
    assert len(gone["steps"]) == 1
    assert gone["events"] > 0


async def test_a_run_whose_log_is_not_open_yet_is_shown_without_waiting_for_it(
    live: LiveServer,
) -> None:
    agent, thread = await new_threads(live)
    place = Thread(AgentId(agent), ConversationId(thread))
    owner = live.context.runs.ownership.owner
    run = a_run(place, DEFAULT_TENANT, owner=owner, created_at=live.clock.now())
    await live.context.records.runs.create(DEFAULT_TENANT, run, None, ())
    early = await shown(live, run.id)
    assert (early["status"], early["log"], early["last_seq"]) == ("created", "open", None)
    assert (early["events"], early["steps"], early["input_preview"]) == (None, [], "hello")


async def test_a_damaged_log_shows_what_can_be_read(live: LiveServer) -> None:
    run_id = await ended_run(live, "[chunks=3]")
    await live.context.runs.log.trim(run_id, Seq(4))
    run = await shown(live, run_id)
    assert (run["first_seq"], run["log"]) == (4, "closed")


@pytest.mark.promise("P12")
async def test_a_reader_that_was_cut_off_stays_known_and_only_to_its_tenant_and_operators(
    apart: LiveServer,
) -> None:
    live = apart
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=1000]", after=3, stream_tokens=True)
    key, secret = await live.context.records.keys.create(DEFAULT_TENANT, "one")
    headers = {**NAMED, "Authorization": f"Bearer {secret}"}
    readers = live.context.runs.readers
    async with live.stream(f"/v1/runs/{run_id}/stream", {}, method="GET", headers=headers):
        await eventually(lambda: any(one.cursor > 0 for one in readers))
        await live.context.records.keys.revoke(key.id)
        await eventually(lambda: len(readers) == 0)
    admin = await with_scopes(live, KeyScope.ADMIN)
    stranger = await with_scopes(live, KeyScope.ADMIN, tenant=OTHER_TENANT)
    operator = await with_scopes(live, KeyScope.OPERATOR, tenant=TenantId("ops"))
    path = f"/v1/admin/runs/{run_id}"
    async with admin, stranger, operator:
        for client in (admin, operator):
            run = (await client.get(path)).json()
            (cut,) = run["cut_offs"]
            assert (cut["reason"], cut["client"], cut["transport"]) == (
                "revoked",
                "phone/3.1",
                "get",
            )
            assert cut["cursor"] == run["last_seq"]
            assert cut["process"] == run["owner"]
        assert (await stranger.get(path)).status_code == 404
        assert (await admin.get(f"/v1/admin/runs/{new_run_id()}")).status_code == 404
        assert (await admin.get("/v1/admin/runs/one")).status_code == 400
        other = await admin.get(path, params={"tenant": OTHER_TENANT})
        assert other.status_code == 403
    assert live.rows()["cut_offs"] == 1


async def test_a_run_that_was_handed_over_shows_both_attempts_and_the_readers_sent_away(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path) as live:
        agent, thread = await new_threads(live)
        run_id = await live.held_run(agent, thread, "[chunks=6]", after=3)
        first_owner = live.context.runs.ownership.owner
        readers = live.context.runs.readers
        async with live.stream(f"/v1/runs/{run_id}/stream", {}, headers=NAMED) as stream:
            await eventually(lambda: any(one.cursor > 0 for one in readers))
            before = (await shown(live, run_id))["last_seq"]
            await live.context.runs.drain(0)
            with pytest.raises(httpx2.TransportError):
                await stream.rest()
    async with listening(tmp_path) as live:
        await live.ended(run_id)
        run = await shown(live, run_id)
        timeline = await live.got(f"/v1/runs/{run_id}/timeline")
    first, second = run["attempt_list"]
    assert (first["owner"], first["token"]) == (first_owner, 1)
    assert first["ended_at"] <= second["began_at"]
    assert (second["owner"], second["interruption"]) == (run["owner"], "handover")
    assert second["owner"] != first_owner
    assert second["token"] > 1
    assert second["after_seq"] == before
    assert run["attempts"] == 2
    (cut,) = run["cut_offs"]
    assert (cut["reason"], cut["process"], cut["cursor"]) == ("released", first_owner, before)
    assert timeline["missing"] == []
    assert timeline["gaps"][0]["after_seq"] == before
