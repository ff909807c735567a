"""Refusals, cut-offs, callbacks, bytes and takeovers are counted as the clients saw them."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from reattach.domain.ids import DEFAULT_TENANT
from reattach.domain.limits import KEY_CACHE_SECONDS
from reattach.records.base import KeyScope
from tests.support.callback_receiver import receiving
from tests.support.live_server import (
    WAIT_SECONDS,
    LiveServer,
    hold_settlements,
    listening,
    message_body,
    new_threads,
    to,
)
from tests.support.scraped import Scraped, parse
from tests.support.stores import eventually

SEND: Final = {"input": "[chunks=3]", "background": True, "stream_tokens": True}


async def scraped(live: LiveServer, **headers: str) -> Scraped:
    response = await live.client.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    return parse(response.text)


async def received_bytes(live: LiveServer, request: bytes) -> bytes:
    """Send a request on a connection of its own, and return everything that comes back."""
    reader, writer = await asyncio.open_connection(*live.address)
    async with asyncio.timeout(WAIT_SECONDS):
        writer.write(request)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer


async def test_every_sent_byte_is_counted_also_those_of_heads(tmp_path: Path) -> None:
    head = b"Host: localhost\r\nConnection: close\r\n"
    scrape = b"GET /metrics HTTP/1.1\r\n" + head + b"\r\n"
    async with listening(tmp_path) as live:
        agent, thread = await new_threads(live)
        live.gates.open(agent)
        run_id = await live.background_run(thread, "[chunks=50]")
        await live.ended(run_id)
        await live.client.aclose()
        await eventually(lambda: len(live.context.runs.readers) == 0)
        first = await received_bytes(live, scrape)
        path = f"POST /v1/runs/{run_id}/stream HTTP/1.1\r\n".encode()
        body = b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        streamed = await received_bytes(live, path + head + body)
        get = f"GET /v1/runs/{run_id}/stream HTTP/1.1\r\n".encode() + head + b"\r\n"
        streamed += await received_bytes(live, get)
        second = await received_bytes(live, scrape)
    before, after = (parse(one.partition(b"\r\n\r\n")[2].decode()) for one in (first, second))
    sent = after.since(before, "reattach_sent_bytes_total")
    assert sent == len(first) + len(streamed)
    assert after.value("reattach_connections") == 1


async def test_readers_are_counted_by_the_way_in_which_they_read(tmp_path: Path) -> None:
    async with listening(tmp_path) as live, AsyncExitStack() as streams:
        agent, thread = await new_threads(live)
        run_id = await live.held_run(agent, thread, "[chunks=9]", after=2, stream_tokens=True)
        path = f"/v1/runs/{run_id}/stream"
        many = {"runs": [{"run_id": run_id, "starting_after": 0}]}
        opened = [
            live.stream(path, {}),
            live.stream(path, {}),
            live.stream(path, {}, method="GET"),
            live.stream("/v1/streams", many),
        ]
        for stream in opened:
            await (await streams.enter_async_context(stream)).next()
        found = await scraped(live)
        transports = {"post": 2, "get": 1, "many": 1}
        for transport, count in transports.items():
            assert found.value("reattach_readers", transport=transport) == count
        assert found.value("reattach_resumes_total", cursor="start") == 4
        live.gates.open(agent)
        await live.ended(run_id)
        lags = (await scraped(live)).value("reattach_delivery_lag_seconds_count")
        assert lags > 0


async def test_resumes_that_cannot_be_served_or_begin_with_a_snapshot_are_counted(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path) as live:
        agent, thread = await new_threads(live)
        run_id = await live.held_run(agent, thread, "[chunks=9]", after=2, stream_tokens=True)
        path = f"/v1/runs/{run_id}/stream"
        ahead = await live.client.post(path, json={"starting_after": 1000})
        assert ahead.status_code == 409
        async with live.stream(path, {"from": "snapshot"}, method="GET") as stream:
            assert stream.status_code == 200
            before = await scraped(live)
        assert before.value("reattach_resumes_total", cursor="ahead") == 1
        assert before.value("reattach_resumes_total", cursor="snapshot") == 1
        await live.ended(run_id)
        await live.context.runs.log.delete(run_id)
        assert (await live.client.post(path, json={})).status_code == 410
        gone = (await scraped(live)).value("reattach_resumes_total", cursor="gone")
        assert gone == 1


async def test_cut_offs_are_counted_by_reason(tmp_path: Path) -> None:
    async with listening(tmp_path, ping_interval_seconds=0.2, stall_seconds=0.5) as live:
        agent, thread = await new_threads(live)
        run_id = await live.held_run(agent, thread, "[chunks=999]", after=900, stream_tokens=True)
        path = f"/v1/runs/{run_id}/stream"
        cut_off = live.context.meters.readers_cut
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with socket.socket() as idle:
            # A client that reads nothing, and whose buffer is full long before the last event.
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            idle.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(idle, live.address)
            await loop.sock_sendall(idle, request.encode())
            await eventually(lambda: cut_off.value("stalled") == 1)
        found = await scraped(live)
        assert found.value("reattach_readers_cut_total", reason="stalled") == 1
        assert found.value("reattach_readers_cut_total", reason="revoked") == 0

        keys = live.context.records.keys
        key, secret = await keys.create(DEFAULT_TENANT, "reader")
        _, operator = await keys.create(DEFAULT_TENANT, "operator", scopes={KeyScope.OPERATOR})
        live.clock.skipped_seconds += 2 * KEY_CACHE_SECONDS
        async with live.stream(path, {}, headers={"Authorization": f"Bearer {secret}"}):
            await keys.revoke(key.id)
            await eventually(lambda: cut_off.value("revoked") == 1)
        found = await scraped(live, authorization=f"Bearer {operator}")
        assert found.value("reattach_readers_cut_total", reason="revoked") == 1
        assert found.value("reattach_readers_cut_total") == 2


async def test_a_refused_request_is_counted_once_with_its_limit(tmp_path: Path) -> None:
    quotas: dict[str, Any] = {"quota_runs": 1, "quota_streams": 2, "quota_body_mib": 1}
    async with listening(tmp_path, **quotas) as live:
        agent, thread = await new_threads(live)
        run_id = await live.held_run(agent, thread, "[chunks=9]", after=2)
        path = f"/v1/runs/{run_id}/stream"
        async with live.stream(path, {}) as one, live.stream(path, {}) as other:
            assert (one.status_code, other.status_code) == (200, 200)
            # By the fast path, which leaves a refusal to the regular one, and as pages read.
            assert (await live.client.post(path, json={})).status_code == 429
            assert "quota_exceeded" in (await live.client.get(path)).text
            _, second = await new_threads(live)
            assert (await live.client.post(to(second), json=SEND)).status_code == 429
            large = {"metadata": {"x": "y" * 1_200_000}}
            assert (await live.client.post("/v1/agents/", json=large)).status_code == 429
        found = await scraped(live)
        counted = {"streams": 2, "runs": 1, "bodies": 1, "requests": 0, "connections": 0}
        for reason, count in counted.items():
            assert found.value("reattach_refused_total", reason=reason) == count, reason


@pytest.mark.parametrize("fast", [True, False])
async def test_a_request_beyond_the_rate_is_counted_once(tmp_path: Path, fast: bool) -> None:
    async with listening(tmp_path, quota_requests_per_second=0.5) as live:
        path = "/v1/runs/run-00000000-0000-4000-8000-000000000000/stream"
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                if fast:
                    answer = await live.client.post(path, json={})
                else:
                    answer = await live.client.get("/v1/runs/?limit=1")
                if answer.status_code == 429:
                    break
        assert live.context.meters.refused.value("requests") == 1


async def test_callbacks_are_counted_by_their_outcome(tmp_path: Path) -> None:
    async with listening(tmp_path, callbacks_to_private=True) as live:
        agent = (await live.agent())["id"]
        live.gates.open(agent)
        counts = live.context.meters.callbacks

        def counted(calls: int) -> bool:
            return sum(count for _, count in counts.items()) == calls

        async with receiving("500 Oh", "410 Gone") as receiver:
            for calls in (1, 2, 3):
                body = message_body("lantern", callback_url=receiver.url)
                await live.made(f"/v1/agents/{agent}/messages/async", body)
                await eventually(partial(counted, calls))
        found = await scraped(live)
        outcomes = {"failed": 1, "given_up": 1, "delivered": 1}
        for outcome, count in outcomes.items():
            assert found.value("reattach_callbacks_total", outcome=outcome) == count, outcome


async def test_a_run_that_goes_on_after_a_restart_is_counted_as_taken_over(tmp_path: Path) -> None:
    async with listening(tmp_path) as live:
        agent, thread = await new_threads(live)
        run_id = await live.held_run(agent, thread, "[chunks=9]", after=3, stream_tokens=True)
    async with listening(tmp_path) as live:
        await eventually(lambda: live.context.meters.takeovers.value("continued") == 1)
        await live.ended(run_id)
        found = await scraped(live)
        assert found.value("reattach_takeovers_total", outcome="continued") == 1
        assert found.value("reattach_takeovers_total", outcome="ended") == 0
        assert found.value("reattach_continuations_total", cause="handover") == 1
        assert found.value("reattach_runs_ended_total", status="completed") == 1


async def test_an_open_run_counts_as_running_until_its_end_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path) as live:
        held = hold_settlements(live, monkeypatch)
        agent, thread = await new_threads(live)
        live.gates.open(agent)
        await live.background_run(thread, "[chunks=2]")
        await held.reached.wait()
        found = await scraped(live)
        assert found.value("reattach_runs", status="running") == 1
        assert found.value("reattach_runs_ended_total") == 0
        held.go_on.set()
        counted = live.context.meters.runs_ended
        await eventually(lambda: sum(count for _, count in counted.items()) == 1)
        assert (await scraped(live)).value("reattach_runs", status="running") == 0
