"""Bounds on the memory of snapshots whose readers are slow, and on how often they are encoded."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest

from reattach.domain.errors import UnavailableError
from reattach.domain.events import RunStatus
from reattach.domain.ids import DEFAULT_TENANT, Seq
from reattach.domain.limits import REPLAY_SLICE_BYTES
from reattach.http.connection.protocol import HttpConnection
from reattach.runs.following.follow import Expiry, Following
from reattach.runs.snapshot import snapshots as snapshots_module
from reattach.runs.snapshot.fold import Fold
from reattach.runs.snapshot.sharing import SentLimits, SentSnapshots, Snapshot
from tests.support.live_server import WAIT_SECONDS, LiveServer, listening, new_threads
from tests.support.living_objects import living

pytestmark = [pytest.mark.promise("P12"), pytest.mark.promise("P20")]

LARGE = "[size=20000][chunks=400]"
"""An answer of 8 MB: more than the buffers of a connection in the kernel."""


async def large_run(live: LiveServer) -> str:
    agent, thread = await new_threads(live)
    return await live.held_run(agent, thread, LARGE, after=390)


async def until(live: LiveServer, readers: int) -> None:
    """Return when so many snapshots are being sent."""
    async with asyncio.timeout(WAIT_SECONDS):
        while sum(live.context.runs.snapshots.sent._readers.values()) != readers:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def asked(live: LiveServer, path: str) -> AsyncIterator[socket.socket]:
    """A client that has sent its request and reads nothing."""
    url, loop = urlsplit(live.url), asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(client, (url.hostname, url.port))
        head = f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"
        await loop.sock_sendall(client, head.encode())
        yield client


async def rest_of(client: socket.socket) -> bytes:
    loop, parts = asyncio.get_running_loop(), []
    async with asyncio.timeout(WAIT_SECONDS):
        while part := await loop.sock_recv(client, 1 << 20):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("path", ["snapshot", "stream?from=snapshot"])
async def test_readers_that_read_nothing_share_the_bytes_of_one_snapshot(
    live: LiveServer, path: str
) -> None:
    run_id = await large_run(live)
    sent = live.context.runs.snapshots.sent
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(asked(live, f"/v1/runs/{run_id}/{path}"))
        await until(live, readers=20)
        assert len(sent._readers) == 1
        assert sent.size_bytes == next(iter(sent._readers)).size_bytes
        buffered = [one._transport.get_write_buffer_size() for one in living(HttpConnection)]
        assert 0 < max(buffered) <= 3 * REPLAY_SLICE_BYTES
    await until(live, readers=0)
    assert sent.size_bytes == 0
    assert not sent._of_run
    assert not sent._bytes_of_tenant
    await live.ended(run_id)


async def test_a_slow_reader_gets_the_whole_snapshot(live: LiveServer) -> None:
    run_id = await large_run(live)
    path = f"/v1/runs/{run_id}/snapshot"
    async with asked(live, path) as client:
        await until(live, readers=1)
        expected = await live.got(path)
        _, _, body = (await rest_of(client)).partition(b"\r\n\r\n")
    assert json.loads(body) == expected
    await until(live, readers=0)
    await live.ended(run_id)


async def test_no_announcement_comes_between_the_pieces_of_a_snapshot(live: LiveServer) -> None:
    run_id = await large_run(live)
    async with asked(live, f"/v1/runs/{run_id}/stream?from=snapshot") as client:
        await until(live, readers=1)
        for following in tuple(live.context.runs.watch._readers):
            following.expires_at = live.clock.now() + timedelta(seconds=9)
            following.expiry = Expiry.SOON
            following.wake()
        expected = await live.got(f"/v1/runs/{run_id}/snapshot")
        ended = asyncio.create_task(rest_of(client))
        await live.ended(run_id)
        _, _, body = (await ended).partition(b"\r\n\r\n")
    first, second, *_ = body.decode().split("\n\n")
    assert json.loads(first.partition("data: ")[2]) == expected
    assert second.startswith("event: expiring\n")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_snapshot_counts_as_a_stream_of_its_tenant_while_it_is_sent(tmp_path: Path) -> None:
    async with listening(tmp_path, quota_streams=1) as live:
        run_id = await large_run(live)
        path = f"/v1/runs/{run_id}/snapshot"
        async with asked(live, path):
            await until(live, readers=1)
            refused = await live.client.get(path)
            assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
            assert int(refused.headers["retry-after"]) >= 1
        await until(live, readers=0)
        assert (await live.client.get(path)).status_code == 200
        await live.ended(run_id)


async def test_snapshots_beyond_the_memory_for_them_are_refused_for_a_moment(
    live: LiveServer,
) -> None:
    sent = live.context.runs.snapshots.sent = SentSnapshots(SentLimits(1, 1))
    one, other = [await large_run(live) for _ in range(2)]
    async with asked(live, f"/v1/runs/{one}/snapshot"):
        await until(live, readers=1)
        refused = await live.client.get(f"/v1/runs/{other}/snapshot")
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        page = await live.client.get(f"/v1/runs/{other}/stream?from=snapshot")
        assert page.status_code == 200
        assert "retry: 5000" in page.text
        assert "event:" not in page.text
        assert (await live.client.get(f"/v1/runs/{one}/snapshot")).status_code == 200
    await until(live, readers=0)
    assert (await live.client.get(f"/v1/runs/{other}/snapshot")).status_code == 200
    assert not sent.size_bytes
    for run_id in (one, other):
        await live.ended(run_id)


async def test_a_crowd_encodes_the_snapshot_of_a_run_that_is_being_written_twice(
    live: LiveServer,
) -> None:
    agent, thread = await new_threads(live)
    run_id = await live.held_run(agent, thread, "[chunks=2000]", after=5)
    snapshots = live.context.runs.snapshots
    target = await live.context.runs.target(DEFAULT_TENANT, run_id)
    advance, rounds = snapshots_module._advance, 0

    async def advance_by_one(fold: Fold, following: Following) -> None:
        nonlocal rounds
        rounds += 1
        live.gates.hold(agent, 5 + rounds)
        await live.gates.reached(agent, 5 + rounds)
        await live.logged(run_id)
        await advance(fold, following)

    with patch.object(snapshots_module, "_advance", advance_by_one):
        found = await asyncio.gather(*(snapshots.of(target) for _ in range(50)))
    assert len(set(found)) == rounds == 2
    await live.ended(run_id)


async def test_the_bound_holds_for_a_process_and_for_each_tenant(live: LiveServer) -> None:
    run_ids = []
    for _ in range(3):
        agent, thread = await new_threads(live)
        live.gates.open(agent)
        run_ids.append(await live.background_run(thread, "hi"))
        await live.ended(run_ids[-1])
    one, other, third = [await live.context.runs.by_id(DEFAULT_TENANT, r) for r in run_ids]

    def snapshot(run: object, seq: int, status: RunStatus = RunStatus.RUNNING) -> Snapshot:
        return Snapshot(run, status, None, Seq(seq), b"[]")  # type: ignore[arg-type]

    size_bytes = snapshot(one, 1).size_bytes
    sent = SentSnapshots(SentLimits(size_bytes=9 * size_bytes, tenant_size_bytes=2 * size_bytes))
    first, second = (sent.begin(snapshot(one, seq)) for seq in (1, 2))
    assert sent.size_bytes == 2 * size_bytes
    assert sent.begin(snapshot(one, 3)).seq == 2, "the newest that is being sent is shared"
    with pytest.raises(UnavailableError):
        sent.begin(snapshot(other, 1))
    with pytest.raises(
        UnavailableError
    ):  # A client that saw the end never gets an earlier snapshot.
        sent.begin(snapshot(one, 3, RunStatus.COMPLETED))
    first.close()
    first.close()
    assert second.take()
    assert sent.begin(snapshot(third, 1)).seq == 1
    assert sent.size_bytes == 2 * size_bytes
    # Nobody gets the system messages that another reader of the run may see.
    whole = Snapshot(one, RunStatus.RUNNING, None, Seq(4), b'[{"message_type":"system_message"}]')
    shown = whole.without_system_messages()
    assert shown is whole.without_system_messages()
    assert json.loads(shown.encode())["messages"] == []
    with pytest.raises(UnavailableError):
        sent.begin(shown)
    assert sent.begin(whole).seq == 2
