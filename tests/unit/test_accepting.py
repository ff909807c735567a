from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
import uvloop

from reattach.server.acceptor import Acceptor, Address
from reattach.server.listener import set_connection_options

WAIT_SECONDS = 20.0
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def run(main: Coroutine[Any, Any, None], new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main)


def listening() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)
    listener.setblocking(False)
    return listener


class Lobby:
    """Knows who came in, and after how many turns of the loop."""

    def __init__(self, guests: int) -> None:
        self.turns = 0
        self.came: list[Guest] = []
        self.all_here = asyncio.Event()
        self._guests = guests

    def new_guest(self, _address: Address) -> Guest:
        return Guest(self)

    def enter(self, guest: Guest) -> None:
        self.came.append(guest)
        if len(self.came) == self._guests:
            self.all_here.set()

    async def count_turns(self) -> None:
        while not self.all_here.is_set():
            await asyncio.sleep(0)
            self.turns += 1


class Guest(asyncio.Protocol):
    def __init__(self, lobby: Lobby) -> None:
        self._lobby = lobby

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = cast("asyncio.Transport", transport)  # uvloop's are none by their class
        made.write(b"hello")
        made.close()
        self._lobby.enter(self)


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_all_who_wait_are_taken_in_a_few_turns_of_the_loop(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        lobby = Lobby(100)
        with listening() as listener:
            clients = [socket.create_connection(listener.getsockname()) for _ in range(100)]
            acceptor = Acceptor(listener, lobby.new_guest)
            acceptor.start()
            async with asyncio.timeout(WAIT_SECONDS):
                await lobby.count_turns()
            acceptor.close()
            await acceptor.wait_closed()
        assert lobby.turns < 20
        for client in clients:
            client.settimeout(WAIT_SECONDS)
            assert await asyncio.to_thread(client.recv, 5) == b"hello"
            client.close()

    run(main(), new_loop)


class Exhausted:
    """A listener whose process has no file left, for the first ``times``."""

    def __init__(self, listener: socket.socket, times: int) -> None:
        self._listener = listener
        self.times = times

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        if self.times:
            self.times -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listener.accept()


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_those_who_knock_while_there_is_no_file_left_are_taken_later(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        lobby = Lobby(1)
        with listening() as listener, socket.create_connection(listener.getsockname()):
            exhausted: Any = Exhausted(listener, times=3)
            acceptor = Acceptor(exhausted, lobby.new_guest, pause_seconds=0.01)
            acceptor.start()
            async with asyncio.timeout(WAIT_SECONDS):
                await lobby.all_here.wait()
            assert exhausted.times == 0
            acceptor.close()

    run(main(), new_loop)


@pytest.mark.parametrize("pauses", [False, True], ids=["at work", "in a pause"])
def test_whoever_comes_after_the_close_is_left_to_the_next_one(pauses: bool) -> None:
    async def main() -> None:
        lobby, next_lobby = Lobby(1), Lobby(1)
        with listening() as listener:
            exhausted: Any = Exhausted(listener, times=int(pauses))
            acceptor = Acceptor(exhausted, lobby.new_guest, pause_seconds=0.001)
            acceptor.start()
            with socket.create_connection(listener.getsockname()):
                async with asyncio.timeout(WAIT_SECONDS):
                    while exhausted.times:
                        await asyncio.sleep(0)
                    acceptor.close()
                    acceptor.close()
                    following = Acceptor(listener, next_lobby.new_guest)
                    following.start()
                    await next_lobby.all_here.wait()
                    following.close()
        assert lobby.came == []

    run(main(), uvloop.new_event_loop)


def test_a_refused_connection_gets_the_reason_and_costs_no_protocol() -> None:
    """B4: connections are bounded by address, before anything is made for them."""

    async def main() -> None:
        lobby = Lobby(1)
        asked: list[Address] = []

        def admit(address: Address) -> bytes | None:
            asked.append(address)
            return b"full" if len(asked) == 1 else None

        with listening() as listener:
            acceptor = Acceptor(listener, lobby.new_guest, admit=admit)
            acceptor.start()
            clients = [socket.create_connection(listener.getsockname()) for _ in range(2)]
            async with asyncio.timeout(WAIT_SECONDS):
                await lobby.all_here.wait()
            acceptor.close()
        for client, said in zip(clients, (b"full", b"hello"), strict=True):
            client.settimeout(WAIT_SECONDS)
            assert await asyncio.to_thread(client.recv, 10) == said
            client.close()
        assert [host for host, _ in asked] == ["127.0.0.1"] * 2

    run(main(), uvloop.new_event_loop)


def test_a_connection_that_waited_before_the_listener_had_its_options_has_them() -> None:
    def send_buffer_of(one: socket.socket) -> int:
        return one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    buffers: list[int] = []

    class Measured(Guest):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            buffers.append(send_buffer_of(transport.get_extra_info("socket")))
            super().connection_made(transport)

    async def main() -> None:
        lobby = Lobby(1)
        with listening() as listener, socket.create_connection(listener.getsockname()):
            before = send_buffer_of(listener)
            set_connection_options(listener)
            assert send_buffer_of(listener) != before
            acceptor = Acceptor(listener, lambda _: Measured(lobby), prepare=set_connection_options)
            acceptor.start()
            async with asyncio.timeout(WAIT_SECONDS):
                await lobby.all_here.wait()
            acceptor.close()
            assert buffers == [send_buffer_of(listener)]

    run(main(), uvloop.new_event_loop)
