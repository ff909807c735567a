"""How many connections there may be."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from reattach.domain.errors.connection import TooManyConnectionsError
from reattach.domain.ids import new_run_id
from reattach.http.connection.capacity import Capacity
from reattach.http.connection.refusals import Refusals
from reattach.http.connection.server_state import ServerState
from reattach.http.connection.states import Timeouts
from reattach.http.connection.watch import Watch
from reattach.http.middleware.pages import Pages
from tests.support.live_server import WAIT_SECONDS, listening


def capacity(most: int | None = None, each: int | None = None) -> Capacity:
    return Capacity(Watch(Timeouts(30), lambda: 0.0), most, each)


def admitted(one: Capacity, *addresses: str) -> list[str]:
    """Those that were let in."""
    found = []
    for address in addresses:
        try:
            one.admit(address)
        except TooManyConnectionsError:
            continue
        found.append(address)
    return found


@pytest.mark.promise("P12")
def test_by_default_files_are_left_for_the_rest_and_connections_for_other_addresses() -> None:
    """B4: 400 connections of one address shut a small server."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for limit, connections in ((512, 384), (min(4096, most), min(4096, most) - 256)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
            one = capacity()
            assert one.most == connections
            crowd = admitted(one, *["10.0.0.1"] * 1000 * (1 + connections // 1000))
            assert len(crowd) == one.each == connections * 3 // 4
            assert admitted(one, "10.0.0.2") == ["10.0.0.2"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))


@pytest.mark.parametrize(
    ("addresses", "let_in"),
    [
        (["10.0.0.1", "10.0.0.1", "10.0.0.2"], [0, 2]),
        (["::ffff:10.0.0.1", "10.0.0.1"], [0]),
        (["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"], [0, 2]),
        (["fe80::1%eth0", "fe80::2%eth1"], [0]),
    ],
    ids=str,
)
def test_a_client_is_an_address_or_a_network_of_ipv6(
    addresses: list[str], let_in: list[int]
) -> None:
    one = capacity(most=10, each=1)
    assert admitted(one, *addresses) == [addresses[place] for place in let_in]
    for place in let_in:
        one.leave(addresses[place])
    assert admitted(one, addresses[0]) == addresses[:1]


@pytest.mark.promise("P12")
async def test_the_settings_limit_the_connections_of_a_server(tmp_path: Path) -> None:
    """B4: nothing bounds the connections of an address."""
    async with listening(tmp_path, max_connections_per_address=2) as live:
        kept = [await asyncio.open_connection(*live.address) for _ in range(2)]
        async with asyncio.timeout(WAIT_SECONDS):
            reader, writer = await asyncio.open_connection(*live.address)
            answer = await reader.read()
            for _, one in (*kept, (reader, writer)):
                one.close()
                await one.wait_closed()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1\r\n" in answer
            assert b'"code":"too_many_connections"' in answer
            while b" 200 " not in await _asked(live.address):
                await asyncio.sleep(0.001)


@pytest.mark.promise("S14", "P12")
async def test_a_page_beyond_the_limit_gets_a_stream_that_says_when_to_come_back(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path, max_connections_per_address=1) as live:
        stream = f"/v1/runs/{new_run_id()}/stream"
        kept = await asyncio.open_connection(*live.address)
        page = await _asked(live.address, f"GET {stream}", "Origin: http://localhost:3000\r\n")
        head, _, body = page.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"\r\naccess-control-allow-origin: http://localhost:3000\r\n" in head
        assert b"\r\nconnection: close" in head
        assert b"too_many_connections" in body
        assert b"\nretry: 1000\n\n" in body
        for request in (f"POST {stream}", "GET /v1/health"):
            answer = await _asked(live.address, request)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b'"code":"too_many_connections"' in answer
        kept[1].close()
        await kept[1].wait_closed()
        async with asyncio.timeout(WAIT_SECONDS):
            while b" 200 " not in await _asked(live.address):
                await asyncio.sleep(0.001)


@pytest.mark.promise("P12")
async def test_few_refused_requests_are_read_at_a_time() -> None:
    refusals = Refusals(ServerState(), Pages(None).cors, most=2)
    error = TooManyConnectionsError("The server", 1)
    clients = [("10.0.0.1", port) for port in range(3)]
    assert [refusals.take(client, error) for client in clients] == [True, True, False]
    assert [refusals.connection(client) is not None for client in clients] == [True, True, False]
    assert [refusals.leave(client) for client in clients] == [True, True, False]
    assert refusals.take(clients[2], error)


async def _asked(
    address: tuple[str, int], request: str = "GET /v1/health", headers: str = ""
) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    head = f"{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
    writer.write(head.encode())
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            return await reader.read()
    finally:
        writer.close()
