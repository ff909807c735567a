"""Runs with their figures, for operators."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from reattach.domain.ids import DEFAULT_TENANT, TenantId
from reattach.http.api.admin.run_states import RunList
from reattach.records.base import KeyScope
from tests.http.test_admin_processes import with_scopes
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import LiveServer, listening, new_threads, thread_with
from tests.support.stores import eventually

RUNS = "/v1/admin/runs"


@pytest.fixture
async def apart(tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A server for a test that makes keys."""
    async with listening(tmp_path) as live:
        yield live


async def ended_run(live: LiveServer, message: str) -> str:
    _, thread = await thread_with(live)
    run_id = await live.background_run(thread, message)
    await live.ended(run_id)
    return run_id


async def test_an_ended_run_has_its_final_figures(live: LiveServer) -> None:
    run_id = await ended_run(live, "[chunks=5][rate=4]")
    (item,) = (await live.got(RUNS, query=run_id))["items"]
    run = await live.run(run_id)
    frames = await live.got(f"/v1/runs/{run_id}/frames")
    assert item["id"] == run_id
    assert {name: item[name] for name in ("status", "stop_reason", "created_at")} == {
        name: run[name] for name in ("status", "stop_reason", "created_at")
    }
    assert (item["events"], item["readers"], item["attempts"]) == (frames["last_seq"], 0, 1)
    assert item["bytes"] == sum(one["bytes"] for one in frames["items"])
    assert 0 < item["events_per_second"] < 10
    assert 0 <= item["first_event_seconds"] < 60
    assert run["ttft_ns"] == round(item["first_event_seconds"] * 1e6) * 1000
    assert item["input_preview"] == "[chunks=5][rate=4]"
    assert (item["model"], item["error"], item["worker"]) == ("scripted/echo", None, None)
    assert item["agent_name"]


async def test_the_list_has_the_members_that_the_api_describes_in_the_same_bytes(
    live: LiveServer,
) -> None:
    for message in ("[chunks=5]", "[fail=0:llm_timeout]"):
        await ended_run(live, message)
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=9]", after=3)
    response = await live.client.get(RUNS, params={"limit": 3})
    shown = RunList.model_validate_json(response.content)
    assert {one.status for one in shown.items} == {"completed", "failed", "running"}
    assert shown.model_dump_json().encode() == response.content
    live.gates.open(agent)
    await live.ended(run_id)


async def test_a_run_that_took_less_than_a_second_has_no_mean_rate(live: LiveServer) -> None:
    run_id = await ended_run(live, "[chunks=5]")
    (item,) = (await live.got(RUNS, query=run_id))["items"]
    took = datetime.fromisoformat(item["completed_at"]) - datetime.fromisoformat(item["created_at"])
    assert (item["events_per_second"] is None) == (took.total_seconds() < 1)


async def test_an_open_run_has_its_present_figures(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=9]", after=3)
    async with live.stream(f"/v1/runs/{run_id}/stream", {}):
        await eventually(lambda: len(live.context.runs.readers) == 1)
        page = await live.got(RUNS, agent_id=agent)
    (item,) = page["items"]
    assert (page["active"], page["total"]) == (1, 1)
    assert (item["status"], item["readers"]) == ("running", 1)
    assert item["events"] == (await live.got(f"/v1/runs/{run_id}/frames"))["last_seq"]
    assert item["bytes"] > 0
    assert item["first_event_seconds"] >= 0
    assert item["owner"] == live.context.runs.ownership.owner
    await live.ended(run_id)
    assert (await live.got(RUNS))["active"] == 0


async def test_runs_are_filtered_searched_and_paged(live: LiveServer) -> None:
    before = {item["id"] for item in (await live.got(RUNS))["items"]}
    failed = await ended_run(live, "[chunks=2][fail=1]")
    first, second = [await ended_run(live, f"an island {n}") for n in range(2)]

    async def found(**query: Any) -> list[str]:
        items = (await live.got(RUNS, **query))["items"]
        return [item["id"] for item in items if item["id"] not in before]

    assert await found() == [second, first, failed]
    assert await found(status="failed") == [failed]
    assert await found(status=["completed", "cancelled"]) == [second, first]
    assert await found(query="ISLAND 0") == [first]
    assert await found(query=second[4:20]) == [second]
    assert await found(query="  ", model="") == [second, first, failed]
    assert await found(model="scripted/slow") == []
    agent = (await live.run(first))["agent_id"]
    assert await found(agent_id=agent) == [first]
    page = await live.got(RUNS, limit=2)
    assert page["has_more"]
    (item,) = (await live.got(RUNS, limit=1, after=page["items"][-1]["id"]))["items"]
    assert item["id"] == failed
    assert item["error"]["error_type"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("status=going", 422),
        ("limit=0", 422),
        ("limit=1001", 422),
        ("agent_id=x", 422),
        ("conversation_id=default", 422),
        (f"query={'x' * 1001}", 422),
        ("after=run-1", 404),
    ],
)
async def test_bad_queries_are_refused(live: LiveServer, query: str, status: int) -> None:
    refused = await live.client.get(f"{RUNS}?{query}")
    assert refused.status_code == status, refused.text


@pytest.mark.promise("P12")
async def test_a_tenant_sees_its_own_runs_and_an_operator_those_of_all(apart: LiveServer) -> None:
    live = apart
    nothing = {"items": [], "active": 0, "total": 0, "has_more": False}
    assert await live.got(RUNS) == nothing
    ours = await ended_run(live, "one")
    admin = await with_scopes(live, KeyScope.ADMIN)
    stranger = await with_scopes(live, KeyScope.ADMIN, tenant=OTHER_TENANT)
    operator = await with_scopes(live, KeyScope.OPERATOR, tenant=TenantId("ops"))
    async with admin, stranger, operator:
        assert [one["id"] for one in (await admin.get(RUNS)).json()["items"]] == [ours]
        for client in (stranger, operator):
            mine = await client.get(RUNS, params={"query": "one"})
            shown = [one["id"] for one in mine.json()["items"]]
            assert shown == ([ours] if client is operator else [])
        assert (await stranger.get(RUNS)).json() == nothing
        assert (await stranger.get(RUNS, params={"tenant": DEFAULT_TENANT})).status_code == 403
        assert (await stranger.get(RUNS, params={"after": ours})).status_code == 404
        named = await operator.get(RUNS, params={"tenant": DEFAULT_TENANT})
        assert [one["id"] for one in named.json()["items"]] == [ours]
        named = await operator.get(RUNS, params={"tenant": OTHER_TENANT})
        assert named.json()["items"] == []
    async with await with_scopes(live, KeyScope.READ, KeyScope.SEND) as reader:
        refused = await reader.get(RUNS)
        assert (refused.status_code, refused.json()["missing_scope"]) == (403, "admin")
