"""Operators see the processes of a server, their runs and readers, and what its checks find."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from reattach import __version__
from reattach.domain.ids import DEFAULT_TENANT, TenantId
from reattach.records.base import KeyScope
from tests.support.live_server import LiveServer, listening, new_threads
from tests.support.stores import eventually

PROCESSES = "/v1/admin/processes"
FINDINGS = "/v1/admin/findings"


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path) as live:
        yield live


async def with_scopes(
    live: LiveServer, *scopes: KeyScope, tenant: TenantId = DEFAULT_TENANT
) -> httpx2.AsyncClient:
    """A client with a new key of the tenant."""
    client = await live.as_tenant(DEFAULT_TENANT)
    _, secret = await live.context.records.keys.create(tenant, "one", scopes=scopes)
    client.headers["Authorization"] = f"Bearer {secret}"
    return client


async def test_a_server_without_keys_shows_its_process_with_runs_and_readers(
    live: LiveServer,
) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=100]", after=3)
    async with live.stream(f"/v1/runs/{run_id}/stream", {}):
        await eventually(lambda: len(live.context.runs.readers) == 1)
        (process,) = (await live.got(PROCESSES))["items"]
    assert (process["open_runs"], process["readers"]) == (1, 1)
    assert process["is_this"] is True
    assert process["draining"] is False
    assert process["version"] == __version__
    assert process["host"]
    assert process["pid"] > 0
    assert process["memory_bytes"] > 1_000_000
    assert process["lease"] is None
    assert [one["store"] for one in process["stores"]] == ["records", "log"]
    assert all(one["operations"] for one in process["stores"])
    report = await live.context.reports.own()
    (run,) = report.runs
    assert (run.run_id, run.readers) == (run_id, 1)
    assert run.last_seq > 0
    assert run.bytes > 0
    await live.ended(run_id)
    assert (await live.context.reports.own()).run_count == 0


async def test_a_tenant_sees_its_own_counts_and_no_machine(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    await live.held_run(agent, thread, "[chunks=100]", after=3)
    stranger = TenantId("tenant-b")
    theirs = await with_scopes(live, KeyScope.ADMIN, tenant=stranger)
    ours = await with_scopes(live, KeyScope.ADMIN)
    async with theirs, ours:
        (one,) = (await theirs.get(PROCESSES)).json()["items"]
        assert (one["open_runs"], one["host"], one["pid"], one["memory_bytes"]) == (
            0,
            None,
            None,
            None,
        )
        assert (one["stores"], one["event_loop_lag_seconds"]) == ([], None)
        (one,) = (await ours.get(PROCESSES)).json()["items"]
        assert (one["open_runs"], one["host"], one["stores"]) == (1, None, [])
        refused = await theirs.get(PROCESSES, params={"tenant": DEFAULT_TENANT})
        assert (refused.status_code, refused.json()["missing_scope"]) == (403, "operator")
        assert (
            "`reattach keys create NAME --tenant tenant-b --scope admin --scope operator`"
            in refused.json()["detail"]
        )
        unreadable = await theirs.get("/v1/agents/")
        assert "--tenant tenant-b --scope admin --scope read`" in unreadable.json()["detail"]
        assert (await theirs.get(PROCESSES, params={"tenant": stranger})).status_code == 200


async def test_an_operator_sees_every_tenant_or_the_one_that_it_names(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    await live.held_run(agent, thread, "[chunks=100]", after=3)
    async with await with_scopes(live, KeyScope.OPERATOR, tenant=TenantId("ops")) as operator:
        (one,) = (await operator.get(PROCESSES)).json()["items"]
        assert one["open_runs"] == 1
        assert one["host"]
        for tenant, runs in ((DEFAULT_TENANT, 1), ("ops", 0)):
            answer = await operator.get(PROCESSES, params={"tenant": tenant})
            assert answer.json()["items"][0]["open_runs"] == runs
        refused = await operator.get("/v1/agents/")
        assert (refused.status_code, refused.json()["missing_scope"]) == (403, "read")


@pytest.mark.parametrize("scope", [KeyScope.READ, KeyScope.SEND])
async def test_other_scopes_do_not_open_the_routes_of_operators(
    live: LiveServer, scope: KeyScope
) -> None:
    async with await with_scopes(live, scope) as client:
        for path, missing in ((PROCESSES, "admin"), (FINDINGS, "operator")):
            refused = await client.get(path)
            assert (refused.status_code, refused.json()["missing_scope"]) == (403, missing)


async def test_findings_are_for_operators_because_they_name_the_stores_of_all(
    live: LiveServer,
) -> None:
    async with await with_scopes(live, KeyScope.ADMIN) as admin:
        refused = await admin.get(FINDINGS)
        assert (refused.status_code, refused.json()["missing_scope"]) == (403, "operator")
    async with await with_scopes(live, KeyScope.OPERATOR) as operator:
        found = (await operator.get(FINDINGS)).json()
    assert found["audit"] == []
