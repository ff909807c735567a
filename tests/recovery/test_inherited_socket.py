"""A listening socket that another process keeps open while servers die and restart."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from reattach.domain.clock import SystemClock
from reattach.domain.errors import StartupError
from reattach.engine.scripted import ScriptedEngine
from reattach.server.assembly import assemble
from reattach.server.inherited import take_inherited
from reattach.server.process import _Server
from reattach.settings import Settings
from reattach.testing.programs.ports import free_port
from tests.support.commands import reattach_here
from tests.support.inheriting_server import LAUNCHER, InheritingServer

WAIT_SECONDS = 30.0
CLIENTS = 20
REQUEST = b"GET /v1/agents/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
REPORT = """
import json, os, socket, subprocess, sys
from reattach.server.inherited import take_inherited

listener = take_inherited(None)
option = lambda level, name: listener.getsockopt(level, name)
look = "import os; print([name for name in os.environ if name.startswith('LISTEN_')])\\n"
look += "print(os.path.exists('/dev/fd/3'))"
command = [sys.executable, "-c", look]
child = subprocess.run(command, close_fds=False, capture_output=True, text=True)
print(json.dumps({
    "address": listener.getsockname(),
    "protocol": listener.proto,
    "blocking": listener.getblocking(),
    "send_buffer": option(socket.SOL_SOCKET, socket.SO_SNDBUF),
    "keep_alive": option(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "child": child.stdout.splitlines(),
}))
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket as systemd makes it, without options of Reattach."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        yield listener


def knock(address: Any) -> socket.socket:
    """Connect and send a request, without waiting for its response."""
    client = socket.create_connection(address, timeout=WAIT_SECONDS)
    client.sendall(REQUEST)
    return client


def status_of(client: socket.socket) -> int:
    """Read a response to its end, and return its status."""
    with client, client.makefile("rb") as response:
        return int(response.read().split()[1])


def test_clients_that_connect_while_no_server_runs_are_answered_by_the_next(
    tmp_path: Path, listener: socket.socket
) -> None:
    address = listener.getsockname()
    server = InheritingServer(tmp_path, listener, "systemd")
    waiting = [knock(address) for _ in range(CLIENTS)]
    with server:
        assert server.url == f"http://127.0.0.1:{address[1]}"
        assert [status_of(client) for client in waiting] == [200] * CLIENTS

        server.kill()
        waiting = [knock(address) for _ in range(CLIENTS)]
        server.start()
        assert [status_of(client) for client in waiting] == [200] * CLIENTS

        # Some connect before the server stops accepting, some while it exits, some after that.
        server.signal(signal.SIGTERM)
        waiting = []
        while server.running:
            waiting.append(knock(address))
            with suppress(subprocess.TimeoutExpired):
                server.wait(timeout_seconds=0.002)
        assert server.wait() == 0
        waiting += [knock(address) for _ in range(CLIENTS)]
        server.way = "flag"
        server.start()
        assert [status_of(client) for client in waiting] == [200] * len(waiting)


class _InLoop(_Server):
    """The production server without its signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def is_left_to_the_next_server(listener: socket.socket) -> bool:
    """Connect, and return whether the server has not accepted the connection after some ticks."""
    with socket.create_connection(listener.getsockname()):
        for _ in range(10):
            await asyncio.sleep(0)
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True


async def test_a_server_that_exits_answers_those_it_accepted_and_leaves_others_to_the_next(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reattach.server.process.FIRST_REQUEST_SECONDS", WAIT_SECONDS)
    inherited = take_inherited(os.dup(listener.fileno()))
    assert inherited is not None
    settings = Settings(data_dir=tmp_path, fd=inherited.fileno(), default_model="scripted/echo")
    ready = asyncio.Event()
    async with (
        assemble(settings, engines=[ScriptedEngine(clock=SystemClock())]) as context,
        asyncio.timeout(WAIT_SECONDS),
    ):
        server = _InLoop(context, "", lambda _: ready.set())
        serving = asyncio.create_task(server.serve(inherited))
        await ready.wait()
        address = listener.getsockname()
        reader, writer = await asyncio.open_connection(*address)
        while not server.state.connections:
            await asyncio.sleep(0)
        await server._begin_drain()
        while not await is_left_to_the_next_server(listener):
            pass
        writer.write(REQUEST)
        assert b" 200 " in await reader.readline()
        writer.close()
        await serving
        assert await is_left_to_the_next_server(listener)


def test_an_inherited_socket_gets_the_servers_options_and_children_do_not_see_it(
    listener: socket.socket,
) -> None:
    fd = listener.fileno()
    ran = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(fd), "-c", REPORT],
        pass_fds=[fd],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    with socket.create_server(("127.0.0.1", 0)) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024)
        expected = plain.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    assert json.loads(ran.stdout) == {
        "address": list(listener.getsockname()),
        "protocol": socket.IPPROTO_TCP,
        "blocking": False,
        "send_buffer": expected,
        "keep_alive": 1,
        "child": ["[]", "False"],
    }


def test_a_descriptor_that_is_no_listening_tcp_socket_is_refused_and_stays_open(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        opened: dict[str, Any] = {
            "is not a socket": stack.enter_context((tmp_path / "file").open("w")),
            "is a socket that does not listen": stack.enter_context(socket.socket()),
            "is not a TCP socket": stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)),
        }
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        for problem, one in [*opened.items(), ("is not a TCP socket", unix)]:
            fd = one.fileno()
            with pytest.raises(StartupError) as refused:
                take_inherited(fd)
            assert refused.value.fact == f"REATTACH_FD is {fd}, and descriptor {fd} {problem}."
            assert "unset REATTACH_FD" in refused.value.remedy
            os.fstat(fd)


def test_the_command_line_names_a_descriptor_that_is_not_open() -> None:
    ended = reattach_here("serve", "--fd", "1000000")

    assert ended.status == 1
    assert "REATTACH_FD is 1000000, and descriptor 1000000 is not open." in ended.err


def test_a_wrong_socket_from_systemd_is_refused_with_the_lines_of_its_unit() -> None:
    with socket.socket() as connected:
        fd = connected.fileno()
        ran = subprocess.run(
            [sys.executable, "-c", LAUNCHER, str(fd), "-c", REPORT],
            pass_fds=[fd],
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_SECONDS,
        )

    assert ran.returncode == 1
    assert "LISTEN_FDS is 1, and descriptor 3 is a socket that does not listen." in ran.stderr
    assert "Accept=no" in ran.stderr


def test_sockets_for_another_process_are_reported_and_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    with structlog.testing.capture_logs() as lines:
        assert take_inherited(None) is None

    assert [line["event"] for line in lines] == ["inherited sockets are not used"]
    assert os.environ["LISTEN_PID"] == "1"


def test_a_socket_that_other_machines_can_reach_needs_a_key_whatever_the_host_setting_says(
    tmp_path: Path,
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        fd = os.dup(listener.fileno())
        ended = reattach_here(
            *("serve", "--host", "127.0.0.1", "--fd", str(fd), "--data-dir", str(tmp_path))
        )

    assert ended.status == 1
    assert "The inherited socket listens on 0.0.0.0" in ended.err
    assert "reattach keys create" in ended.err


@pytest.mark.parametrize("way", ["systemd", "flag"])
def test_several_processes_refuse_an_inherited_socket(way: str) -> None:
    passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    variables = passed if way == "systemd" else {"REATTACH_FD": "3"}
    ended = reattach_here("serve", "--workers", "2", **variables)

    assert ended.status == 1
    assert "REATTACH_WORKERS is 2, and the listening socket is inherited." in ended.err
    assert "Set REATTACH_WORKERS to 1" in ended.err


if (ACTIVATE := shutil.which("systemd-socket-activate")) is not None:

    def test_systemd_starts_a_server_that_answers_the_client_who_waited(tmp_path: Path) -> None:
        assert ACTIVATE is not None
        port = free_port()
        command = [ACTIVATE, "-l", f"127.0.0.1:{port}", "-E", f"REATTACH_DATA_DIR={tmp_path}"]
        command += [sys.executable, "-m", "reattach", "serve"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert process.stdout is not None
            try:
                line = process.stderr.readline()  # "Listening on … as 3."
                assert f":{port}" in line, line
                assert status_of(knock(("127.0.0.1", port))) == 200
                assert f"http://127.0.0.1:{port}" in process.stdout.readline()
                process.terminate()
                assert process.wait(WAIT_SECONDS) == 0
            finally:
                process.kill()
