"""A server that drains after SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from reattach.domain.limits import CLOSE_SECONDS, ENGINE_STOP_SECONDS
from reattach.testing.programs.server import ServerProcess
from tests.support.raw_clients import Client, client_of, start
from tests.support.received import Received
from tests.support.stores import eventually

BOUND_SECONDS = CLOSE_SECONDS + ENGINE_STOP_SECONDS + 8
"""Time of an exit on a slow machine beyond the drain."""
DRAINED = {"stop_reason": "error", "error_type": "stream_task_cancelled"}


@asynccontextmanager
async def serving(
    directory: Path, *, drain_seconds: float, continues: bool = False
) -> AsyncIterator[ServerProcess]:
    server = ServerProcess(
        directory,
        arguments=["--scripted", "--log-level", "info"],
        environment={
            "REATTACH_DRAIN_SECONDS": str(drain_seconds),
            "REATTACH_CONTINUE": str(continues).lower(),
        },
    )
    await start(server)
    try:
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def answering(
    client: Client, text: str, *, until_seq: int = 2
) -> AsyncIterator[tuple[asyncio.Task[str | None], Received]]:
    """Start a run, read it to ``until_seq``, and keep reading."""
    received = Received()
    came_so_far = asyncio.Event()

    def on_read() -> None:
        if received.cursor >= until_seq:
            came_so_far.set()

    conversation_id = await client.conversation()
    task = asyncio.create_task(
        client.send(conversation_id, text, received, otid=conversation_id, on_read=on_read)
    )
    async with asyncio.timeout(20):
        await came_so_far.wait()
    try:
        yield task, received
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=5)


async def is_draining(client: Client) -> bool:
    return (await client.http.get("/v1/ready/")).status_code == 503


async def exit_status(server: ServerProcess, seconds: float) -> int:
    return await asyncio.to_thread(server.wait, timeout_seconds=seconds)


@pytest.mark.promise("P15", "P3")
async def test_a_draining_server_serves_readers_refuses_sends_and_ends_every_run(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, drain_seconds=3) as server, client_of(server) as client:
        free = await client.conversation()
        async with (
            answering(client, "[chunks=20][rate=20]") as (short_task, short),
            answering(client, "[hang=3]", until_seq=4) as (long_task, long),
        ):
            assert short.run_id is not None
            assert long.run_id is not None
            server.signal(signal.SIGTERM)
            await eventually(lambda: is_draining(client))
            ready = await client.http.get("/v1/ready/")
            assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            assert (await client.http.get("/v1/health/")).status_code == 200

            refused = await client.post(
                f"/v1/conversations/{free}/messages", {"input": "one more", "background": True}
            )
            assert refused.status_code == 503
            assert refused.json()["code"] == "unavailable"
            assert int(refused.headers["retry-after"]) > 0

            resumed = Received(1)
            async with asyncio.timeout(3 + BOUND_SECONDS):
                await client.resume(short.run_id, resumed)
                await short_task
                cut = Received(4)
                await client.resume(long.run_id, cut)
                await long_task
                assert await exit_status(server, BOUND_SECONDS) == 0
            assert short.end() == {"stop_reason": "end_turn", "error_type": None}
            assert short.text == "".join(f"t{number} " for number in range(20))
            assert resumed.frames == short.frames[1:]
            assert long.end() == DRAINED
            assert cut.frames == long.frames[4:]

        await start(server)
        async with client_of(server) as again:
            assert await again.got("/v1/runs/", active=True) == []
            replay = Received()
            await again.resume(long.run_id, replay)
            assert replay.frames == long.frames
            runs = {run["id"]: run["status"] for run in await again.got("/v1/runs/")}
            assert runs == {short.run_id: "completed", long.run_id: "failed"}
            assert "recovering runs" not in server.output

            # The server is idle now, and the client's connection stays open.
            server.signal(signal.SIGINT)
            async with asyncio.timeout(BOUND_SECONDS):
                assert await exit_status(server, BOUND_SECONDS) == 0
    assert "Traceback" not in server.output


@pytest.mark.promise("P12", "P15")
async def test_a_second_signal_shortens_the_drain_and_no_reader_delays_the_exit(
    tmp_path: Path,
) -> None:
    async with (
        serving(tmp_path, drain_seconds=300) as server,
        client_of(server) as client,
        answering(client, "[hang=3]", until_seq=4) as (task, received),
        answering(client, "[chunks=5000][size=500]", until_seq=5000) as (big_task, big),
    ):
        _, takes_nothing = await asyncio.open_connection(*server.address, limit=1024)
        async with asyncio.timeout(20):
            await big_task
            request = f"POST /v1/runs/{big.run_id}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
            takes_nothing.write(request.encode())
            await takes_nothing.drain()
        server.signal(signal.SIGTERM)
        await eventually(lambda: is_draining(client))
        assert not task.done()
        server.signal(signal.SIGTERM)
        async with asyncio.timeout(BOUND_SECONDS):
            await task
            assert await exit_status(server, BOUND_SECONDS) == 0
        assert received.end() == DRAINED
        takes_nothing.close()


@pytest.mark.promise("P15")
async def test_two_signals_at_the_same_moment_end_the_drain_at_once(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, drain_seconds=300) as server,
        client_of(server) as client,
        answering(client, "[hang=3]", until_seq=4) as (task, received),
    ):
        # A process that stands still gets both when it goes on, as a busy event loop does.
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            server.signal(number)
        async with asyncio.timeout(BOUND_SECONDS):
            await task
            assert await exit_status(server, BOUND_SECONDS) == 0
        assert received.end() == DRAINED
