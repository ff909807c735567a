"""The relay of the test kit does to connections what it says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from reattach.testing.programs.relay import Relay

WAIT_SECONDS = 10.0


@pytest.fixture
def relay() -> Iterator[Relay]:
    """A relay before a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1024):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener, Relay(listener.getsockname()) as relay:
        yield relay


def connected(relay: Relay) -> socket.socket:
    connection = socket.create_connection(relay.address, timeout=WAIT_SECONDS)
    assert echoed(connection, b"hello") == b"hello"
    return connection


def echoed(connection: socket.socket, data: bytes) -> bytes:
    """Send ``data`` and return the answer, which is empty if the connection was cut."""
    try:
        connection.sendall(data)
        return connection.recv(1024)
    except ConnectionError:
        return b""


def test_stranded_connections_stay_silent_and_later_ones_go_through(relay: Relay) -> None:
    with connected(relay) as stranded:
        relay.strand()
        with connected(relay) as later:
            stranded.sendall(b"lost")
            assert echoed(later, b"again") == b"again"
            stranded.setblocking(False)
            with pytest.raises(BlockingIOError):
                stranded.recv(1)
            stranded.settimeout(WAIT_SECONDS)
            assert relay.open_connections == 2
            relay.mend()
            assert echoed(stranded, b"more") == b""
    with connected(relay) as fresh:
        assert echoed(fresh, b"well") == b"well"


def test_what_was_swallowed_never_reaches_a_connection_that_is_mended(relay: Relay) -> None:
    with connected(relay) as connection:
        relay.swallow()
        connection.sendall(b"lost")
        relay.mend()
        assert echoed(connection, b"more") == b""
    with connected(relay) as fresh:
        relay.mend()
        assert echoed(fresh, b"a mend that mends nothing cuts nothing") != b""
