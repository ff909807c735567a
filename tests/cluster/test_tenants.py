"""A tenant of several servers, exported and deleted by commands while they run."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest
import redis

from reattach.domain.ids import TenantId, new_tenant_id
from reattach.testing.programs.cluster import Cluster
from tests.cluster.clients import Client, client_at
from tests.support.commands import Ended, reattach


def tenants(cluster: Cluster, *arguments: str) -> Ended:
    return reattach(
        "tenants",
        *arguments,
        REATTACH_DATABASE_URL=cluster.postgresql.url(),
        REATTACH_LOG_URL=cluster.redis.url,
    )


def stored(cluster: Cluster, words: list[str]) -> dict[str, set[str]]:
    """Return where each of the words is found in the two stores."""
    found: dict[str, set[str]] = {word: set() for word in words}
    with psycopg.connect(cluster.postgresql.url()) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (name,) in names.fetchall():
            text = str(connection.execute(f'SELECT * FROM "{name}"'.encode()).fetchall())
            for word in words:
                if word in text:
                    found[word].add(name)
    with redis.Redis.from_url(cluster.redis.url) as client:
        keys = [key.decode(errors="replace") for key in client.scan_iter("*")]
    for word in words:
        found[word].update(key for key in keys if word in key)
    return found


@pytest.mark.promise("P12")
async def test_a_tenant_of_several_servers_is_exported_and_deleted_with_its_active_runs(
    cluster: Cluster, clients: list[Client]
) -> None:
    tenant = new_tenant_id()
    secret = await asyncio.to_thread(cluster.new_key, TenantId(tenant))
    other = await clients[0].conversation()
    async with clients[0].sent(other, "other words") as stream:
        kept_run = stream.run_id
        await stream.to_end()
    async with (
        client_at(cluster.urls[0], secret) as first,
        client_at(cluster.urls[1], secret) as second,
    ):
        conversation = await first.conversation()
        async with first.sent(conversation, "secret words", otid="otid-of-this") as stream:
            ended_run = stream.run_id
            whole = await stream.to_end()
        hanging = await second.conversation()
        async with second.sent(hanging, "[chunks=2][hang=600]") as stream:
            active_run = stream.run_id

    def lines() -> list[dict[str, Any]]:
        ended = tenants(cluster, "export", tenant)
        assert ended.status == 0, ended.err
        return [json.loads(line) for line in ended.out.splitlines()]

    exported = await asyncio.to_thread(lines)
    frames = [
        line["frame"].encode()
        for line in exported
        if line["type"] == "event" and line["run_id"] == ended_run
    ]
    assert frames == [*whole.by_seq.values()][: len(frames)]
    assert len(frames) == len(whole.by_seq)
    assert {line["id"] for line in exported if line["type"] == "run"} == {ended_run, active_run}
    assert kept_run not in json.dumps(exported)

    shown = await clients[0].http.get("/v1/admin/processes")
    assert shown.status_code == 200, shown.text
    refused = await asyncio.to_thread(tenants, cluster, "delete", tenant, "--yes")
    assert (refused.status, active_run in refused.err) == (1, True)
    done = await asyncio.to_thread(tenants, cluster, "delete", tenant, "--yes", "--cancel-runs")

    assert done.status == 0, done.err
    words = [tenant, ended_run, active_run, conversation, "secret words", "otid-of-this", kept_run]
    found = await asyncio.to_thread(stored, cluster, words)
    assert found.pop(tenant) == {"audit_log"}
    assert any(name.startswith("reattach:") for name in found.pop(kept_run))
    assert {word: places for word, places in found.items() if places} == {}
    again = await asyncio.to_thread(tenants, cluster, "delete", tenant, "--yes")
    assert (again.status, "Nothing of the tenant" in again.err) == (1, True)
    assert (await clients[2].resumed(kept_run)).done
