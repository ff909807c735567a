"""How many connections there may be."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from reattach.domain.errors.connection import TooManyConnectionsError
from reattach.http.connection.capacity import Capacity
from reattach.http.connection.states import Timeouts
from reattach.http.connection.watch import Watch
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


async def _asked(address: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    try:
        return await reader.read()
    finally:
        writer.close()
