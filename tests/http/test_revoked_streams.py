"""Streams and waits that were opened with a key end when it is revoked or expires."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.domain.ids import DEFAULT_TENANT
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening, new_threads, to

PING_SECONDS = 0.2


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path, ping_interval_seconds=PING_SECONDS) as live:
        yield live


async def keyed(live: LiveServer, **options: Any) -> tuple[str, httpx2.AsyncClient]:
    """A new key's id, and a client with it."""
    client = await live.as_tenant(DEFAULT_TENANT)
    key, secret = await live.context.records.keys.create(DEFAULT_TENANT, "one", **options)
    client.headers["Authorization"] = f"Bearer {secret}"
    return key.id, client


async def is_cut(stream: Any) -> bool:
    """Whether it breaks off without its end, within a bounded time."""
    try:
        while (await stream.next()).kind != "[DONE]":
            pass
    except httpx2.TransportError:
        return True
    return False


def asked(text: str = "[chunks=1000]") -> dict[str, Any]:
    return {"input": text, "background": True, "stream_tokens": True}


async def held(live: LiveServer) -> tuple[str, str]:
    """An agent whose answers stop after three deltas, and a conversation with it."""
    agent, thread = await new_threads(live)
    live.gates.hold(agent, 3)
    return agent, thread


@pytest.mark.promise("S11")
@pytest.mark.parametrize("way", ["send", "resume", "resume without pings"])
async def test_a_stream_is_cut_off_when_its_key_is_revoked_and_the_run_continues(
    live: LiveServer, way: str
) -> None:
    """D3: open streams end with their key, those of other keys go on."""
    agent, thread = await held(live)
    _, second_thread = await held(live)
    key_id, client = await keyed(live)
    _, other = await keyed(live)
    async with client, other, live.stream(to(thread), asked(), client=other) as kept:
        await live.gates.reached(agent, 3)
        path = f"/v1/runs/{kept.run_id}/stream"
        if way == "send":
            opened = live.stream(to(second_thread), asked(), client=client)
        else:
            opened = live.stream(path, {"include_pings": way == "resume"}, client=client)
        async with opened as stream:
            assert stream.status_code == 200
            await stream.until("assistant_message")
            await live.context.records.keys.revoke(key_id)
            assert await is_cut(stream)
        for one in kept, stream:
            live.gates.open((await other.get(f"/v1/runs/{one.run_id}")).json()["agent_id"])
        assert not await is_cut(kept)
        async with asyncio.timeout(WAIT_SECONDS):
            run = await live.context.runs.by_id(DEFAULT_TENANT, stream.run_id)
            assert (await live.context.runs.wait_until_settled(run)).status == "completed"


@pytest.mark.promise("S11")
async def test_a_stream_that_never_pauses_is_cut_off_as_well(live: LiveServer) -> None:
    """D3: events that come all the time do not keep a revoked reader connected."""
    _, thread = await new_threads(live)
    key_id, client = await keyed(live)
    text = "[chunks=20000][rate=200]"
    async with client, live.stream(to(thread), asked(text), client=client) as stream:
        await stream.until("assistant_message")
        await live.context.records.keys.revoke(key_id)
        assert await is_cut(stream)


@pytest.mark.promise("S11")
async def test_a_stream_is_cut_off_when_its_key_expires(live: LiveServer) -> None:
    """D3, D13: streams end when their key expires."""
    agent, thread = await held(live)
    soon = live.clock.now() + timedelta(hours=1)
    _, client = await keyed(live, expires_at=soon)
    async with client, live.stream(to(thread), asked(), client=client) as stream:
        await live.gates.reached(agent, 3)
        live.clock.skipped_seconds += 3600
        assert await is_cut(stream)


@pytest.mark.promise("S11")
async def test_a_json_answer_that_is_waited_for_becomes_a_401(live: LiveServer) -> None:
    """D3: a request that waits for its run's end is not answered with it."""
    agent, thread = await held(live)
    key_id, client = await keyed(live)
    async with client:
        waiting = asyncio.create_task(
            client.post(to(thread), json={"input": "[chunks=1000]", "streaming": False})
        )
        await live.gates.reached(agent, 3)
        await live.context.records.keys.revoke(key_id)
        async with asyncio.timeout(WAIT_SECONDS):
            answer = await waiting
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    live.gates.open(agent)


@pytest.mark.promise("S11")
async def test_streams_that_were_opened_without_a_key_end_when_the_first_one_is_made(
    live: LiveServer,
) -> None:
    """D3: a server that closes also ends earlier streams."""
    agent, thread = await held(live)
    async with live.stream(to(thread), asked()) as stream:
        await live.gates.reached(agent, 3)
        await live.context.records.keys.create(DEFAULT_TENANT, "first")
        assert await is_cut(stream)


@pytest.mark.promise("P13")
async def test_keys_are_looked_at_once_for_all_their_streams_and_not_without_any(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D3: the cost of the key check does not grow with the readers."""
    looks: list[int] = []
    valid = live.context.records.keys.filter_valid

    async def counted(key_ids: Any) -> frozenset[str]:
        looks.append(len(key_ids))
        return await valid(key_ids)

    monkeypatch.setattr(live.context.records.keys, "filter_valid", counted)
    agent, thread = await held(live)
    _, client = await keyed(live)
    async with client, live.stream(to(thread), asked(), client=client) as stream:
        await live.gates.reached(agent, 3)
        path = f"/v1/runs/{stream.run_id}/stream"
        async with (
            live.stream(path, {}, client=client) as second,
            live.stream(path, {}, client=client) as third,
        ):
            await second.until("assistant_message")
            await third.until("assistant_message")
            looks.clear()
            async with asyncio.timeout(WAIT_SECONDS):
                while len(looks) < 3:
                    await asyncio.sleep(0.01)
    assert set(looks) == {1}
    live.gates.open(agent)
