"""Tenants with their use, over HTTP and in the records."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from reattach.domain.ids import DEFAULT_TENANT, new_tenant_id
from reattach.records.base import KeyScope
from tests.support.asgi_server import OTHER_TENANT, Server, serving, started, with_key

TENANTS = "/v1/admin/tenants"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path, quota_runs=3, quota_streams=0) as server:
        yield server


async def test_a_server_without_anything_lists_no_tenant(server: Server) -> None:
    assert await server.got(TENANTS) == {"items": [], "has_more": False}


async def test_the_use_of_a_tenant_counts_what_it_made(server: Server) -> None:
    agent = await server.agent()
    kept, deleted = [await server.conversation(agent["id"]) for _ in range(2)]
    await server.client.delete(f"/v1/conversations/{deleted['id']}")
    answered = await server.send(kept["id"], "hello")
    run_id = await started(server, kept["id"], "[hang=60]")

    [use] = (await server.got(TENANTS))["items"]

    usage = answered["usage"]
    quotas = {one["name"]: (one["used"], one["limit"]) for one in use.pop("quotas")}
    assert (quotas["runs"], quotas["streams"]) == ((1, 3), (0, None))
    assert quotas["requests_per_second"][0] is None
    assert use.pop("last_run_at") == (await server.got(f"/v1/runs/{run_id}"))["created_at"]
    assert use == {
        "tenant": DEFAULT_TENANT,
        "agents": 1,
        "conversations": 1,
        "keys": 0,
        "active_runs": 1,
        "runs_last_day": 2,
        "prompt_tokens_last_day": usage["prompt_tokens"],
        "completion_tokens_last_day": usage["completion_tokens"],
    }
    await server.client.post(f"/v1/runs/{run_id}/cancel")
    server.clock.skipped_seconds += 25 * 3600
    [later] = (await server.got(TENANTS))["items"]
    assert (later["active_runs"], later["runs_last_day"]) == (0, 0)
    assert later["prompt_tokens_last_day"] == later["completion_tokens_last_day"] == 0


@pytest.mark.promise("P12")
async def test_a_key_of_one_tenant_sees_its_own_and_an_operator_all_page_by_page(
    server: Server,
) -> None:
    records = server.context.records
    others = sorted({OTHER_TENANT, *(new_tenant_id() for _ in range(3))})
    for tenant in others:
        await records.keys.create(tenant, "app")
    key, _ = await records.keys.create(others[0], "old")
    await records.keys.revoke(key.id)
    async with await with_key(server) as ours:
        [own] = (await ours.get(TENANTS)).json()["items"]
        assert (own["tenant"], own["keys"], own["agents"]) == (DEFAULT_TENANT, 1, 0)
        assert (await ours.get(TENANTS, params={"tenant": OTHER_TENANT})).status_code == 403
        assert (await ours.get(TENANTS, params={"tenant": DEFAULT_TENANT})).status_code == 200
    _, secret = await records.keys.create(DEFAULT_TENANT, "ops", scopes=[KeyScope.OPERATOR])
    server.client.headers["Authorization"] = f"Bearer {secret}"
    seen: list[Any] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = await server.got(TENANTS, **query)
        seen += [(one["tenant"], one["keys"]) for one in page["items"]]
        if not page["has_more"]:
            break
        query["after"] = seen[-1][0]
    assert seen == sorted([(DEFAULT_TENANT, 2), *((tenant, 1) for tenant in others)])
    [one] = (await server.got(TENANTS, tenant=OTHER_TENANT))["items"]
    assert one["tenant"] == OTHER_TENANT


async def test_no_query_for_the_use_of_tenants_reads_all_runs(server: Server) -> None:
    await server.agent()

    records = server.context.records
    plans: list[str] = []

    def explain(
        _connection: Any, cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> None:
        explained = cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        plans.extend(row[3] for row in explained)

    engine = records.tenants._database.reads.engine
    event.listen(engine, "before_cursor_execute", explain)
    try:
        await records.tenants.list(limit=10)
    finally:
        event.remove(engine, "before_cursor_execute", explain)

    of_runs = [step for step in plans if " runs" in step]
    assert of_runs
    assert [step for step in of_runs if step.startswith("SCAN")] == []
    assert any("ix_runs_active_owner" in step for step in of_runs)


async def test_usage_that_is_not_json_counts_as_nothing(server: Server) -> None:
    agent = await server.agent()
    conversation = await server.conversation(agent["id"])
    await server.send(conversation["id"], "hello")
    database = server.context.records.tenants._database

    await database.in_write(
        lambda connection: connection.exec_driver_sql("UPDATE runs SET usage = '{broken'")
    )

    [use] = (await server.got(TENANTS))["items"]
    assert (use["runs_last_day"], use["prompt_tokens_last_day"]) == (1, 0)
