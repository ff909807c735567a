"""Bytes through real proxies with the files of deploy/, in front of servers that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from tests.deploy.conftest import ProxyBefore
from tests.deploy.upstream import END, STREAM_HEAD, WAIT_SECONDS, Exchange, Upstream, chunk, playing
from tests.support.proxy_server import ProxyServer

DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def clients_of(proxy: ProxyServer) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        asyncio.timeout(WAIT_SECONDS),
        httpx2.AsyncClient(base_url=proxy.url, timeout=WAIT_SECONDS) as http,
    ):
        yield http


async def test_each_event_arrives_before_the_next_one_is_sent(proxy_before: ProxyBefore) -> None:
    made: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def answer(exchange: Exchange) -> None:
        await exchange.say(STREAM_HEAD)
        while (event := await made.get()) is not None:
            await exchange.say(chunk(event))
        await exchange.say(END)

    async with playing(answer) as upstream:
        with proxy_before([upstream.address]) as proxy:
            async with (
                clients_of(proxy) as http,
                # Browsers ask for compression, which would delay events.
                http.stream("POST", "/x", headers={"Accept-Encoding": "gzip, br"}) as stream,
            ):
                assert stream.headers["x-run-id"] == "run-1"
                assert "content-encoding" not in stream.headers
                pieces = stream.aiter_raw()
                for number in range(20):
                    event = b'data: {"seq_id":%d}\n\n' % number
                    made.put_nowait(event)
                    assert await anext(pieces) == event
                made.put_nowait(None)
                assert [piece async for piece in pieces] == []


@pytest.mark.promise("P6")
async def test_the_server_sees_that_a_client_has_disconnected(proxy_before: ProxyBefore) -> None:
    left = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.say(STREAM_HEAD + chunk(b"data: 1\n\n"))
        await exchange.left()
        left.set()

    async with playing(answer) as upstream:
        with proxy_before([upstream.address]) as proxy:
            async with clients_of(proxy) as http:
                async with http.stream("POST", "/x", json={}) as stream:
                    assert await anext(stream.aiter_raw()) == b"data: 1\n\n"
                await left.wait()


@pytest.mark.parametrize("when", ["within an event", "between events", "after [DONE]"])
async def test_a_server_that_dies_during_an_answer_leaves_an_incomplete_body(
    proxy_before: ProxyBefore, when: str
) -> None:
    said = {
        "within an event": b"5\r\ndat",
        "between events": chunk(b"data: 1\n\n"),
        "after [DONE]": chunk(b"data: 1\n\n" + DONE),
    }[when]

    async def answer(exchange: Exchange) -> None:
        await exchange.say(STREAM_HEAD + said)
        exchange.writer.close()

    async with playing(answer) as upstream, playing(answer) as other:
        with proxy_before([upstream.address, other.address]) as proxy:
            async with clients_of(proxy) as http:
                with pytest.raises(httpx2.TransportError):
                    await http.post("/x", json={})
                assert len(upstream.exchanges) + len(other.exchanges) == 1


async def test_an_error_of_the_server_passes_unchanged_and_is_not_retried_elsewhere(
    proxy_before: ProxyBefore,
) -> None:
    body = b'{"detail":"draining","code":"unavailable"}'

    async def answer(exchange: Exchange) -> None:
        await exchange.say(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            b"Retry-After: 7\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    async with playing(answer) as one, playing(answer) as two:
        with proxy_before([one.address, two.address]) as proxy:
            async with clients_of(proxy) as http:
                got = await http.post("/x", json={})
                assert (got.status_code, got.content) == (503, body)
                assert got.headers["retry-after"] == "7"
                assert got.headers["content-type"] == "application/json"
                assert len(one.exchanges) + len(two.exchanges) == 1


def assert_proxy_error(got: httpx2.Response) -> None:
    """Assert that the answer is an error of the proxy in the servers' format."""
    assert got.status_code in {502, 503, 504}
    assert got.headers["content-type"] == "application/json"
    assert got.headers["retry-after"] == "1"
    assert got.json()["code"] == "unavailable"
    assert isinstance(got.json()["detail"], str)


@pytest.mark.promise("P9")
@pytest.mark.parametrize("earlier", [0, 3], ids=["new connections", "connections in use"])
async def test_a_post_whose_answer_is_lost_is_not_sent_again(
    proxy_before: ProxyBefore, earlier: int
) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.path == "/lost":
            exchange.hang_up()
        else:
            await exchange.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def lost(*upstreams: Upstream) -> int:
        return sum(one.requests.count(("POST", "/lost")) for one in upstreams)

    async with playing(answer) as one, playing(answer) as two:
        with proxy_before([one.address, two.address]) as proxy:
            async with clients_of(proxy) as http:
                for _ in range(earlier):
                    assert (await http.post("/first", json={})).status_code == 200
                try:
                    assert_proxy_error(await http.post("/lost", json={"a": 1}))
                except httpx2.TransportError:
                    # On a reused connection HAProxy leaves the retry to the client.
                    assert earlier
                assert lost(one, two) == 1


@pytest.mark.promise("P9")
async def test_a_server_that_is_down_fails_and_doubles_no_request(
    proxy_before: ProxyBefore,
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with playing(answer) as down:
        pass
    async with playing(answer) as up:
        with proxy_before([down.address, up.address, down.address]) as proxy:
            async with clients_of(proxy) as http:
                for number in range(20):
                    assert (await http.post(f"/{number}", json={})).status_code == 200
        assert up.requests == [("POST", f"/{number}") for number in range(20)]


async def test_with_every_server_down_the_proxy_answers_503_with_retry_after(
    proxy_before: ProxyBefore,
) -> None:
    async def answer(exchange: Exchange) -> None:
        raise AssertionError

    async with playing(answer) as down:
        pass
    with proxy_before([down.address, down.address]) as proxy:
        async with clients_of(proxy) as http:
            for method in ("GET", "POST"):
                assert_proxy_error(await http.request(method, "/x"))
            proxy.stop()
            proxy.start()
            assert_proxy_error(await http.get("/x"))


async def test_connections_to_the_servers_are_reused(proxy_before: ProxyBefore) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with playing(answer) as upstream:
        with proxy_before([upstream.address]) as proxy:
            async with clients_of(proxy) as http:
                for _ in range(20):
                    assert (await http.post("/x", json={})).status_code == 200
        assert len({one.connection for one in upstream.exchanges}) <= 2
