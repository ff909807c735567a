"""One tenant cannot be felt by another: one does its worst, and the other is served meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import DEFAULT_TENANT
from tests.support.asgi_server import OTHER_TENANT
from tests.support.live_server import WAIT_SECONDS, LiveServer, kinds, listening, to

BODY = b"[" + b",".join([b"[]"] * 1_000_000) + b"]"
"""Costs little to send, and about a second to parse."""

QUOTAS: dict[str, Any] = {"quota_runs": 4, "quota_streams": 5, "quota_requests_per_second": 100}
TURNS = 3
AT_MOST = 3
"""How many bodies of the other one might be parsed during one turn."""


class Hostile:
    """A tenant that does everything at once, as often as it can."""

    def __init__(self, live: LiveServer, client: httpx2.AsyncClient) -> None:
        self._live = live
        self._client = client
        self.statuses: Counter[tuple[str, int]] = Counter()

    async def _bodies(self, path: str) -> None:
        headers = {"Content-Type": "application/json"}
        response = await self._client.post(path, content=BODY, headers=headers)
        self.statuses["bodies", response.status_code] += 1

    async def _lists(self) -> None:
        response = await self._client.get("/v1/runs/?limit=1000")
        self.statuses["lists", response.status_code] += 1

    async def _runs(self, agent: str) -> None:
        body = {"input": "[chunks=2000][rate=50]", "stream_tokens": True}
        made = await self._client.post(f"/v1/conversations/?agent_id={agent}", json={})
        if made.status_code == 200:
            path = to(made.json()["id"])
            async with self._live.stream(path, body, client=self._client) as stream:
                self.statuses["runs", stream.status_code] += 1

    async def _streams(self, run_id: str) -> None:
        path = f"/v1/runs/{run_id}/stream"
        async with self._live.stream(path, {}, client=self._client) as stream:
            self.statuses["streams", stream.status_code] += 1
            if stream.status_code == 200:
                await stream.rest()

    @asynccontextmanager
    async def attacking(self) -> AsyncIterator[None]:
        """Attack within it; at its start every kind of request was answered once at least."""
        agent = (await self._client.post("/v1/agents/", json={})).json()["id"]
        begun = await self._client.post(
            f"/v1/agents/{agent}/messages/async", json={"input": "[chunks=5][hang=3]"}
        )
        run_id = begun.json()["id"]
        ways = [
            *[lambda: self._bodies(f"/v1/agents/{agent}/messages")] * 2,
            self._lists,
            *[lambda: self._runs(agent)] * 5,
            *[lambda: self._streams(run_id)] * 4,
        ]
        tasks = [asyncio.create_task(_again_and_again(way)) for way in ways]
        try:
            async with asyncio.timeout(WAIT_SECONDS * 2):
                while len({kind for kind, _ in self.statuses}) < 4:
                    await asyncio.sleep(0.01)
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def _again_and_again(way: Callable[[], Awaitable[None]]) -> None:
    while True:
        with suppress(httpx2.TransportError):
            await way()
        await asyncio.sleep(0.1)  # so that the test's own client is not what is slow


async def honest_turns(live: LiveServer, client: httpx2.AsyncClient, agent: str) -> None:
    """Conversations of an honest client: each answer comes whole."""
    for _ in range(TURNS):
        made = await client.post(f"/v1/conversations/?agent_id={agent}", json={})
        assert made.status_code == 200, made.text
        body = {"input": "hello", "background": True, "stream_tokens": True}
        async with live.stream(to(made.json()["id"]), body, client=client) as stream:
            assert stream.status_code == 200
            assert kinds(await stream.rest())[-1] == "[DONE]"


@pytest.mark.slow
@pytest.mark.promise("P12")
async def test_a_tenant_that_does_its_worst_delays_another_one_within_bounds(
    tmp_path: Path,
) -> None:
    """B3, D12: a concurrent turn is delayed by no more than the parsing of a few bodies."""
    async with listening(tmp_path, **QUOTAS) as live:
        hostile = await live.as_tenant(DEFAULT_TENANT)
        honest = await live.as_tenant(OTHER_TENANT)
        async with hostile, honest:
            agent = (await honest.post("/v1/agents/", json={})).json()["id"]
            begun = time.perf_counter()
            json.loads(BODY)
            parsing_seconds = time.perf_counter() - begun
            attacker = Hostile(live, hostile)
            async with attacker.attacking():
                begun = time.perf_counter()
                await honest_turns(live, honest, agent)
                turns_seconds = time.perf_counter() - begun
            figures = (turns_seconds, parsing_seconds, attacker.statuses)
            assert turns_seconds < TURNS * AT_MOST * parsing_seconds, figures
            # The server's refusals bounded it, not luck.
            assert attacker.statuses["bodies", 422] > 0, figures
            assert attacker.statuses["runs", 429] + attacker.statuses["streams", 429] > 0, figures
            # And it was not thrown out: what is within its quotas is served.
            assert attacker.statuses["lists", 200] > 0, figures
