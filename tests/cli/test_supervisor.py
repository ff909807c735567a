"""``reattach serve --workers``: processes that share a port, and their supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from reattach.testing.programs.ports import free_port
from reattach.testing.programs.redis import RedisServer
from reattach.testing.programs.server import ServerProcess
from tests.support.commands import reattach_here
from tests.support.raw_clients import client_of
from tests.support.received import Received

WAIT_SECONDS = 60.0


@pytest.fixture
def new_server(tmp_path: Path, postgresql_url: str, redis_server: RedisServer) -> ServerProcess:
    """A supervisor of two processes that was not started."""
    return ServerProcess(
        tmp_path,
        arguments=["--workers", "2", "--scripted"],
        environment={
            "REATTACH_DATABASE_URL": postgresql_url,
            "REATTACH_LOG_URL": redis_server.url,
            "REATTACH_DRAIN_SECONDS": "60",
        },
    )


@pytest.fixture
def server(new_server: ServerProcess) -> Iterator[ServerProcess]:
    with new_server:
        yield new_server


def children_of(server: ServerProcess) -> set[int]:
    """The processes that it has started."""
    listed = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    return {int(pid) for pid in listed.split()}


def running_children(server: ServerProcess) -> list[int]:
    """Its children whose program has begun. Until then, the supervisor waits for them."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children_of(server)}
    return [pid for pid, command in commands.items() if b"reattach.server.child" in command]


def connections_of(pid: int) -> int:
    """Sockets of a child; each connection that it accepts adds one."""
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def answers(server: ServerProcess) -> bool:
    """Return whether a process listens on the port."""
    with suppress(OSError), socket.create_connection(server.address):
        return True
    return False


async def all_answer(server: ServerProcess, children: set[int]) -> None:
    """Open connections until each child has accepted some; all of them are answered."""
    before = {pid: connections_of(pid) for pid in children}
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            host, port = server.address
            opened = [await asyncio.open_connection(host, port) for _ in range(20)]
            for reader, writer in opened:
                writer.write(b"GET /v1/health/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b" 200 " in await reader.readline()
            reached = all(connections_of(pid) > before[pid] for pid in children)
            for _, writer in opened:
                writer.close()
            if reached:
                return


async def send_and_signal(server: ServerProcess, text: str, *pids: int) -> Received:
    """Send, and signal SIGTERM to the processes once the answer has begun; return all of it."""
    async with client_of(server) as client:
        received, signalled = Received(), False

        def on_read() -> None:
            nonlocal signalled
            if not signalled and received.cursor:
                signalled = True
                for pid in pids:
                    os.kill(pid, signal.SIGTERM)

        await client.send(await client.conversation(), text, received, otid="one", on_read=on_read)
    return received


async def test_children_share_a_port_are_replaced_when_they_die_and_drain_on_sigterm(
    server: ServerProcess,
) -> None:
    assert server.output.count("is listening on") == 1
    children = children_of(server)
    assert len(children) == 2
    await all_answer(server, children)

    killed, kept = children
    os.kill(killed, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: "child process replaced" in server.output)
    (new,) = children_of(server) - {kept}
    assert new != killed
    await all_answer(server, {new, kept})

    # As a service's supervisor does: to the whole group, so each gets it twice.
    received = await send_and_signal(server, "[chunks=150][rate=100]", server.pid, new, kept)
    assert received.end()["stop_reason"] == "end_turn"
    assert await asyncio.to_thread(server.wait) == 0
    assert is_gone(new)
    assert is_gone(kept)
    assert server.output.count("is listening on") == 1
    assert "Traceback" not in server.output


async def test_signals_to_children_that_stop_change_nothing(server: ServerProcess) -> None:
    children = children_of(server)
    os.kill(server.pid, signal.SIGTERM)
    # A service manager may signal them at any moment of their shutdown.
    deadline = time.monotonic() + WAIT_SECONDS
    while left := [pid for pid in children if not is_gone(pid)]:
        assert time.monotonic() < deadline
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
        await asyncio.sleep(0)
    assert await asyncio.to_thread(server.wait) == 0
    assert "Traceback" not in server.output


@pytest.mark.promise("P15")
async def test_a_child_that_serves_drains_though_another_one_was_still_starting_at_sigterm(
    new_server: ServerProcess,
) -> None:
    server = new_server
    server.port = free_port()
    server.url = f"http://127.0.0.1:{server.port}"
    starting = asyncio.create_task(asyncio.to_thread(server.start))
    await asyncio.to_thread(until, lambda: server.running and len(running_children(server)) == 2)
    process, children = server.pid, children_of(server)
    os.kill(max(children), signal.SIGSTOP)
    await asyncio.to_thread(until, lambda: answers(server))

    received = await send_and_signal(server, "[chunks=50][rate=100]", process)
    assert received.end()["stop_reason"] == "end_turn"
    with pytest.raises(RuntimeError):
        await starting
    assert all(is_gone(pid) for pid in children)
    assert "Traceback" not in server.output


async def test_no_child_outlives_its_supervisor(server: ServerProcess) -> None:
    children = children_of(server)
    assert len(children) == 2
    server.kill()
    await asyncio.to_thread(until, lambda: all(is_gone(pid) for pid in children))


def test_several_processes_without_shared_stores_are_refused_with_the_settings_to_set(
    tmp_path: Path,
) -> None:
    for stores in (
        {},
        {
            "REATTACH_DATABASE_URL": f"sqlite:///{tmp_path}/records.db",
            "REATTACH_LOG_URL": f"sqlite:{tmp_path}/events.db",
        },
    ):
        ended = reattach_here("serve", "--workers", "2", "--port", "0", **stores)
        assert ended.status == 1
        assert "REATTACH_DATABASE_URL" in ended.err
        assert "REATTACH_LOG_URL" in ended.err


def test_a_child_that_cannot_start_is_reported_once_and_none_is_left(
    empty_postgresql_url: str, redis_server: RedisServer
) -> None:
    ended = reattach_here(
        *("serve", "--workers", "2", "--port", "0"),
        REATTACH_DATABASE_URL=empty_postgresql_url,
        REATTACH_LOG_URL=redis_server.url,
    )
    assert ended.status == 1
    assert ended.err.count("reattach db upgrade") == 1
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
    assert [command for command in commands if b"reattach.server.child" in command] == []
