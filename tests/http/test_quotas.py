"""Quotas bound one tenant's use of a process, and other tenants are served meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.errors import QuotaError
from reattach.domain.ids import DEFAULT_TENANT, TenantId
from reattach.domain.limits.requests import QUOTA_BURST_SECONDS
from reattach.http.middleware.quotas import Bounds, Quotas
from tests.support.asgi_server import OTHER_TENANT, TestClock
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening, new_threads, to

TENANT = TenantId("org-1")


@asynccontextmanager
async def two_tenants(
    directory: Path, **settings: Any
) -> AsyncIterator[tuple[LiveServer, httpx2.AsyncClient, httpx2.AsyncClient]]:
    """A server with these quotas, and clients of two of its tenants."""
    async with listening(directory, **settings) as live:
        one, other = (
            await live.as_tenant(DEFAULT_TENANT),
            await live.as_tenant(OTHER_TENANT),
        )
        async with one, other:
            yield live, one, other


async def thread_of(client: httpx2.AsyncClient) -> tuple[str, str]:
    agent = (await client.post("/v1/agents/", json={})).json()["id"]
    made = await client.post(f"/v1/conversations/?agent_id={agent}", json={})
    return agent, str(made.json()["id"])


def assert_over_quota(response: httpx2.Response) -> None:
    assert response.status_code == 429, response.text
    assert response.json()["code"] == "quota_exceeded"
    assert int(response.headers["retry-after"]) >= 1


SEND = {"input": "[chunks=1000]", "background": True, "stream_tokens": True}


@pytest.mark.promise("P12")
async def test_a_tenant_may_have_so_many_open_runs_and_more_when_one_has_ended(
    tmp_path: Path,
) -> None:
    """D12: open runs are bounded for each tenant, on every route that begins one."""
    async with two_tenants(tmp_path, quota_runs=2) as (live, one, other):
        threads = [await thread_of(one) for _ in range(3)]
        theirs = await thread_of(other)
        for agent, _ in (*threads, theirs):
            live.gates.hold(agent, 0)
        async with (
            live.stream(to(threads[0][1]), SEND, client=one) as first,
            live.stream(to(threads[1][1]), SEND, client=one),
        ):
            agent, thread = threads[2]
            for path, body in (
                (to(thread), SEND),
                (to(thread), {"input": "hi", "streaming": False}),
                (f"/v1/agents/{agent}/messages", {"input": "hi"}),
                (f"/v1/agents/{agent}/messages/stream", {"input": "hi"}),
                (f"/v1/agents/{agent}/messages/async", {"input": "hi"}),
            ):
                assert_over_quota(await one.post(path, json=body))
            async with live.stream(to(theirs[1]), SEND, client=other) as served:
                assert served.status_code == 200
            live.gates.open(threads[0][0])
            await first.rest()
            async with live.stream(to(thread), SEND, client=one) as third:
                assert third.status_code == 200
        for agent, _ in (*threads, theirs):
            live.gates.open(agent)


@pytest.mark.promise("P12")
async def test_sends_at_once_do_not_slip_past_the_bound_of_open_runs(tmp_path: Path) -> None:
    """D12: runs that are about to start count."""
    async with two_tenants(tmp_path, quota_runs=3) as (live, one, _):
        threads = [await thread_of(one) for _ in range(8)]
        for agent, _ in threads:
            live.gates.hold(agent, 0)
        sent = [
            one.post(f"/v1/agents/{a}/messages/async", json={"input": "hi"}) for a, _ in threads
        ]
        statuses = [response.status_code for response in await asyncio.gather(*sent)]
        assert (statuses.count(200), statuses.count(429)) == (3, 5)
        for agent, _ in threads:
            live.gates.open(agent)


@pytest.mark.promise("P9", "P12")
async def test_a_known_send_gets_its_run_at_the_quota_of_runs(tmp_path: Path) -> None:
    """D12: the quota refuses new runs only."""
    async with two_tenants(tmp_path, quota_runs=1) as (live, one, _):
        agent, _ = await thread_of(one)
        live.gates.hold(agent, 0)
        message = {"role": "user", "content": "hi", "otid": "known"}
        path, body = f"/v1/agents/{agent}/messages/async", {"messages": [message]}
        first, again = [(await one.post(path, json=body)).json()["id"] for _ in range(2)]
        assert first == again
        assert_over_quota(await one.post(path, json={"input": "another"}))
        live.gates.open(agent)


@pytest.mark.promise("P12")
async def test_a_tenant_may_have_so_many_open_streams_and_more_when_one_is_left(
    tmp_path: Path,
) -> None:
    """D12: open streams, and requests that wait for a run's end, are bounded for each tenant."""
    quotas = {"quota_streams": 3, "ping_interval_seconds": 0.1}  # a ping finds out who has left
    async with two_tenants(tmp_path, **quotas) as (live, one, other):
        agent, thread = await thread_of(one)
        their_agent, theirs = await thread_of(other)
        for held in agent, their_agent:
            live.gates.hold(held, 2)
        async with AsyncExitStack() as stack:
            sent = await stack.enter_async_context(live.stream(to(thread), SEND, client=one))
            path = f"/v1/runs/{sent.run_id}/stream"
            await stack.enter_async_context(live.stream(path, {}, client=one))
            last = live.stream(path, {}, client=one)
            async with last as stream:
                await stream.until("assistant_message")
                assert_over_quota(await one.post(path, json={}))
                assert_over_quota(await one.post(path, json={}, headers={"Origin": "null"}))
                async with live.stream(to(theirs), SEND, client=other) as served:
                    assert served.status_code == 200
            async with asyncio.timeout(WAIT_SECONDS):
                while (again := await left(live, path, one)) != 200:
                    assert again == 429
        for held in agent, their_agent:
            live.gates.open(held)


async def left(live: LiveServer, path: str, client: httpx2.AsyncClient) -> int:
    """The status of a stream that is left at once."""
    async with live.stream(path, {}, client=client) as stream:
        return stream.status_code


@pytest.mark.promise("P12")
async def test_a_tenant_may_send_so_many_requests_over_some_time(tmp_path: Path) -> None:
    """D12: the rate of requests is bounded for each tenant, past the routing as well."""
    async with two_tenants(tmp_path, quota_requests_per_second=0.5) as (live, one, other):
        agent, _ = await thread_of(one)
        live.gates.open(agent)
        begun = await one.post(f"/v1/agents/{agent}/messages/async", json={"input": "hi"})
        path = f"/v1/runs/{begun.json()['id']}/stream"
        async with asyncio.timeout(WAIT_SECONDS):
            while (await one.post(path, json={})).status_code == 200:
                pass
        assert_over_quota(await one.get("/v1/runs/"))
        assert_over_quota(await one.post(path, json={}))
        assert (await other.get("/v1/runs/")).status_code == 200
        assert (await one.get("/v1/health/")).status_code == 200
        live.clock.skipped_seconds += 2
        assert (await one.get("/v1/runs/")).status_code == 200


@pytest.mark.promise("P12")
async def test_the_bodies_of_a_tenant_are_bounded_at_a_time_and_in_a_minute(
    tmp_path: Path,
) -> None:
    """D12, B3: large bodies of one tenant leave room for another one's."""
    quotas = {"quota_body_mib": 2, "quota_body_mib_per_minute": 3}
    large = {"name": "x", "system": "y" * 900_000}
    async with two_tenants(tmp_path, **quotas) as (live, one, other):
        assert (await one.post("/v1/agents/", json=large)).status_code == 200
        too_large = {"metadata": {"x": "y" * 2_200_000}}
        assert_over_quota(await one.post("/v1/agents/", json=too_large))
        async with asyncio.timeout(WAIT_SECONDS):
            while (response := await one.post("/v1/agents/", json=large)).status_code == 200:
                pass
        assert_over_quota(response)
        assert (await other.post("/v1/agents/", json=large)).status_code == 200
        assert (await one.get("/v1/agents/?limit=1")).status_code == 200
        live.clock.skipped_seconds += 60
        assert (await one.post("/v1/agents/", json=large)).status_code == 200


async def test_held_bytes_are_released_however_a_request_ends(tmp_path: Path) -> None:
    """D12: nothing of a quota is lost by requests that fail or are left."""
    async with listening(tmp_path, quota_body_mib=1, quota_streams=2) as live:
        agent, thread = await new_threads(live)
        live.gates.open(agent)
        for body in (b"{", b"[]", b"x" * 600_000, json.dumps({"input": "hi"}).encode()):
            for _ in range(3):
                headers = {"Content-Type": "application/json"}
                response = await live.client.post(to(thread), content=body, headers=headers)
                assert response.status_code != 429
        for _ in range(4):
            assert (await live.client.post("/v1/runs/run-1/stream", json={})).status_code == 400
            assert (await live.client.post(f"{to(thread)[:-9]}/stream", json={})).status_code != 429
        use = _use(live)
        assert use._body_bytes == use._streams == 0


def _use(live: LiveServer) -> Any:
    """The use by the default tenant of an application of its own, with its client."""
    return live.app.fast_path._authenticator._quotas.of(DEFAULT_TENANT)  # type: ignore[union-attr]


@pytest.mark.parametrize(("a_second", "wait_seconds"), [(1, 1), (0.2, 5)])
def test_a_bucket_allows_its_size_and_refills_over_time(a_second: float, wait_seconds: int) -> None:
    """D12: a refusal says after how long the request is taken."""
    clock = TestClock()
    use = Quotas(Bounds(requests_per_second=a_second), clock).of(TENANT)
    for _ in range(int(a_second * QUOTA_BURST_SECONDS)):
        use.admit()
    for _ in range(5):
        with pytest.raises(QuotaError) as refused:
            use.admit()
        assert refused.value.retry_after_seconds == wait_seconds
        clock.skipped_seconds += refused.value.retry_after_seconds
        use.admit()


def test_a_quota_of_zero_means_no_limit() -> None:
    """D12: an operator can turn each quota off."""
    use = Quotas(Bounds(0, 0, 0, 0, 0), TestClock()).of(TENANT)
    for _ in range(1000):
        use.admit()
        use.open_stream()
        use.hold_body(100_000)
        use.admit_run(10**6)
