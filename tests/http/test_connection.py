"""The HTTP/1.1 connection over real sockets: deadlines, and violations of HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from reattach.domain.limits import (
    BODY_IDLE_SECONDS,
    BODY_SECONDS,
    HEAD_SECONDS,
    IDLE_CONNECTION_SECONDS,
    LINGER_SECONDS,
    MAX_HEAD_BYTES,
    MAX_TRAILER_BYTES,
    MAX_TRAILERS,
)
from reattach.http.connection.states import State
from tests.http.endpoint import CLOSE, STALL_SECONDS, WAIT_SECONDS, Served, served

HOST = b"Host: a\r\n"
GET = b"GET /x HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"POST /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n"
STEP = 0.5


@pytest.fixture(
    scope="module",
    params=[("asyncio", {}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served() as server:
        yield server


def error_of(answer: bytes) -> tuple[int, str]:
    """The status and code of the one error that the answer is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), answer[:300]
    assert b"\r\ncontent-type: application/json" in head
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-length: %d\r\n" % len(body) in head + b"\r\n"
    error = json.loads(body)
    assert isinstance(error["detail"], str)
    return int(head.split()[1]), error["code"]


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


# Requests that never end.

UNFINISHED_HEADS = {
    "one byte": b"G",
    "half a request line": b"GET /x HT",
    "half a header": b"GET /x HTTP/1.1\r\nHost: a\r\nX: ",
    "a head without its last line": b"GET /x HTTP/1.1\r\nHost: a\r\n",
    "an empty line, and half a head": b"\r\nGET /x",
}


@pytest.mark.promise("P12")
@pytest.mark.parametrize("said", UNFINISHED_HEADS.values(), ids=UNFINISHED_HEADS)
async def test_a_head_that_does_not_end_is_408_after_30_seconds(
    server: Served, said: bytes
) -> None:
    """B4: half a head holds its connection for ever."""
    client = await server.connect()
    await server.until_state(State.HEAD)
    server.pass_time(HEAD_SECONDS - STEP)
    await client.say(said)
    await asyncio.sleep(0)
    while not any(connection._head for connection in server.state.connections):
        await asyncio.sleep(0.001)
    server.pass_time(HEAD_SECONDS - STEP)
    await server.until_state(State.HEAD)
    server.pass_time(2 * STEP)
    assert error_of(await client.rest()) == (408, "request_timeout")


@pytest.mark.promise("P12")
async def test_a_head_that_trickles_in_is_408_all_the_same(server: Served) -> None:
    """B4: a byte now and then keeps a connection for ever."""
    client = await server.connect(b"GET /x HTTP/1.1\r\n")
    await server.until_state(State.HEAD)
    for number in range(4):
        await client.say(b"X-%d: y\r\n" % number)
        await asyncio.sleep(0.01)  # the bytes have to be there; the time that counts is another
        server.pass_time(HEAD_SECONDS / 3)
    assert error_of(await client.rest()) == (408, "request_timeout")


@pytest.mark.promise("P12")
@pytest.mark.parametrize("said", [b"", b"\r\n", b"\r\n\r\n"], ids=repr)
async def test_a_silent_connection_is_closed_after_30_seconds(server: Served, said: bytes) -> None:
    """B4: a connection that sends nothing is kept for ever."""
    client = await server.connect(said)
    await server.until_state(State.HEAD)
    server.pass_time(HEAD_SECONDS - STEP)
    await server.until_state(State.HEAD)
    server.pass_time(2 * STEP)
    assert await client.rest() == b""


UNFINISHED_BODIES = {
    "no byte of a body": b"Content-Length: 5\r\n\r\n",
    "half a body": b"Content-Length: 5\r\n\r\nab",
    "no chunk": b"Transfer-Encoding: chunked\r\n\r\n",
    "half a chunk size": b"Transfer-Encoding: chunked\r\n\r\n1",
    "half a chunk": b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    "a chunk without its line end": b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r",
    "no last chunk": b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
    "no end of the trailers": b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
    "half a trailer": b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: y",
}


@pytest.mark.promise("P12")
@pytest.mark.parametrize("said", UNFINISHED_BODIES.values(), ids=UNFINISHED_BODIES)
async def test_a_body_that_pauses_is_408_after_60_seconds(server: Served, said: bytes) -> None:
    """B4: half a body, or half a chunk, holds its connection for ever."""
    client = await server.connect(b"POST /x HTTP/1.1\r\n" + HOST + said)
    await server.until_state(State.BODY)
    server.pass_time(BODY_IDLE_SECONDS - STEP)
    await server.until_state(State.BODY)
    server.pass_time(2 * STEP)
    assert error_of(await client.rest()) == (408, "request_timeout")
    await asyncio.wait_for(server.application.left.wait(), 5)
    assert server.application.exchanges == []


@pytest.mark.promise("P12")
async def test_a_body_that_trickles_in_is_408_after_its_time_in_all(server: Served) -> None:
    """B4: one byte of a body each 59 seconds is no reason to wait for ever."""
    head = b"POST /x HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n"
    client = await server.connect(head)
    await server.until_state(State.BODY)
    (connection,) = server.state.connections
    for _ in range(int(BODY_SECONDS / 50) + 2):
        received = connection._body.left
        await client.say(b"x")
        while connection._body is not None and connection._body.left == received:
            await asyncio.sleep(0.0005)
        server.pass_time(50)
        if connection.state is not State.BODY:
            break
    assert error_of(await client.rest()) == (408, "request_timeout")


async def test_a_body_that_is_answered_already_gets_no_second_answer(server: Served) -> None:
    head = b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\n"
    client = await server.connect(head)
    assert await client.until(b'"/early"')
    await server.until_state(State.BODY)
    server.pass_time(BODY_IDLE_SECONDS + STEP)
    server.pass_time(LINGER_SECONDS + STEP)
    assert await client.rest() == b""


async def test_the_rest_of_a_body_that_is_answered_already_is_discarded(server: Served) -> None:
    head = b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\n"
    client = await server.connect(head)
    assert await client.until(b'"/early"')
    await client.say(b"abcde" + GET[:-2] + CLOSE + b"\r\n")
    assert (await client.rest()).endswith(b'"/x"')


@pytest.mark.promise("P12")
async def test_a_connection_between_requests_is_kept_for_125_seconds(server: Served) -> None:
    client = await server.connect(GET)
    assert await client.until(b'"/x"')
    await server.until_state(State.IDLE)
    server.pass_time(IDLE_CONNECTION_SECONDS - STEP)
    await client.say(GET)
    assert await client.until(b'"/x"')
    await server.until_state(State.IDLE)
    server.pass_time(IDLE_CONNECTION_SECONDS + STEP)
    assert await client.rest() == b""


async def test_time_that_the_application_takes_is_not_the_clients(server: Served) -> None:
    client = await server.connect(b"GET /wait HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")
    await server.until_state(State.RESPONSE)
    server.pass_time(10_000)
    server.application.gate.set()
    assert (await client.rest()).endswith(b'"/wait"')


@pytest.mark.promise("P12")
async def test_a_client_that_does_not_close_after_an_error_is_dropped_after_a_second(
    server: Served,
) -> None:
    client = await server.connect(b"nonsense\r\n\r\n")
    assert await client.until(b"}")
    await server.until_state(State.DRAINING)
    await client.say(b"more\r\n" * 1000)
    server.pass_time(LINGER_SECONDS + STEP)
    await server.until_state()
    assert await client.rest() == b""


# Clients that take nothing.


async def stalled(server: Served, seconds: float) -> None:
    """Let the time pass as the watch sees it, in steps shorter than the stall time."""
    for _ in range(int(seconds / 5)):
        server.pass_time(5)
        await asyncio.sleep(0)


async def until_aborted(server: Served) -> None:
    """Let it pass until no connection is left."""
    async with asyncio.timeout(WAIT_SECONDS):
        while server.state.connections:
            server.pass_time(5)
            await asyncio.sleep(0.001)


@pytest.mark.promise("P12")
@pytest.mark.parametrize("more", [b"", CLOSE], ids=["keep-alive", "close"])
async def test_a_client_that_takes_nothing_of_a_large_answer_is_aborted(
    server: Served, more: bytes
) -> None:
    """C7: a client that reads nothing of a 4 MB JSON answer is never cut off."""
    head = b"GET /large HTTP/1.1\r\n" + HOST + more + b"\r\n"
    await server.connect(head, receive_bytes=4096)
    await server.until_state(State.CLOSED if more else State.IDLE)
    await stalled(server, STALL_SECONDS - 5)
    assert len(server.state.connections) == 1
    await until_aborted(server)


@pytest.mark.promise("P12")
async def test_a_reader_that_takes_nothing_of_the_last_64_kib_is_aborted(server: Served) -> None:
    """C7: a response that fits into the buffers is not checked again."""
    await server.connect(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n", receive_bytes=4096)
    await server.until_state(State.DETACHED)
    kept = server.application.kept
    assert kept is not None
    kept.write(b"x" * 60_000)
    assert kept.is_writable()
    await until_aborted(server)
    assert server.application.left.is_set()
    assert kept.stalled


@pytest.mark.promise("P12")
async def test_a_write_without_room_is_refused_and_so_is_one_to_a_client_that_is_gone(
    server: Served,
) -> None:
    client = await server.connect(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n", receive_bytes=4096)
    await server.until_state(State.DETACHED)
    kept = server.application.kept
    assert kept is not None
    large = b"x" * 8_000_000
    assert kept.try_write(large)
    assert not kept.is_writable()
    assert not kept.try_write(b"more")
    client.close()
    async with asyncio.timeout(WAIT_SECONDS):
        await server.application.left.wait()
    assert not kept.try_write(b"gone")


@pytest.mark.promise("P12", "P13")
async def test_a_silent_stream_whose_reader_has_everything_is_never_cut_off(
    server: Served,
) -> None:
    client = await server.connect(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
    assert await client.until(b"first \r\n")
    await stalled(server, 1000)
    assert server.application.kept is not None
    server.application.kept.finish(b"last")
    assert (await client.until(b"0\r\n\r\n")).startswith(b"4\r\nlast")


@pytest.mark.promise("P12")
async def test_a_reader_that_takes_a_little_now_and_then_is_not_aborted(server: Served) -> None:
    said = b"GET /large HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    client = await server.connect(said, receive_bytes=4096)
    await server.until_state(State.CLOSED)
    received = 0
    for _ in range(30):
        received += len(await asyncio.wait_for(client.reader.read(65536), 5))
        server.pass_time(STALL_SECONDS / 2)
        await asyncio.sleep(0.001)
    assert server.state.connections
    assert received + len(await client.rest()) > 4_000_000


# Requests that HTTP forbids.

REFUSED: dict[str, tuple[bytes, int]] = {
    "HTTP/0.9": (b"GET /x\r\n", 400),
    "HTTP/0.9 with a blank line": (b"GET /x\r\n\r\n", 400),
    "HTTP/0.9 by name": (b"GET /x HTTP/0.9\r\n\r\n", 400),
    "HTTP/2 by name": (b"GET /x HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "HTTP/1.2": (b"GET /x HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    "RTSP": (b"GET /x RTSP/1.0\r\n\r\n", 400),
    "ICE": (b"SOURCE /x ICE/1.0\r\n\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/3.0": (b"GET /x HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    "a port that does not exist": (b"GET /x HTTP/1.1\r\nHost: localhost:99999\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a bare LF": (b"GET /x HTTP/1.1\nHost: a\n\n", 400),
    "a bare LF at the end": (b"GET /x HTTP/1.1\r\nHost: a\r\n\n", 400),
    "no Host": (b"GET /x HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (b"GET /x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "two Hosts of HTTP/1.0": (b"GET /x HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n", 400),
    "a Host that is none": (b"GET /x HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "a Host with a path": (b"GET /x HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "a Host with a user": (b"GET /x HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "two Authorizations": (
        b"GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
        400,
    ),
    "two Content-Types": (
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n\r\n",
        400,
    ),
    "two lengths": (
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        400,
    ),
    "the same length twice": (
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        400,
    ),
    "a list of lengths": (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\n{}", 400),
    "a length with a sign": (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\n{}", 400),
    "an empty length": (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
    "a length and chunks": (CHUNKED + b"Content-Length: 2\r\n\r\n0\r\n\r\n", 400),
    "chunks and a length before": (
        CHUNKED.replace(b"Host", b"Content-Length: 2\r\nHost") + b"\r\n0\r\n\r\n",
        400,
    ),
    "chunks twice": (CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks in HTTP/1.0": (
        b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a coding without chunks": (
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        400,
    ),
    "a coding below chunks": (
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    "an unknown expectation": (b"GET /x HTTP/1.1\r\nHost: a\r\nExpect: luck\r\n\r\n", 417),
    "a tunnel": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
    "a fragment": (b"GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target that is no path": (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target of another scheme": (b"GET ftp://a/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an asterisk without OPTIONS": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a folded header": (b"GET /x HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    "a space before the colon": (b"GET /x HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    "a control character": (b"GET /x HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", 400),
    "an unknown method": (b"get /x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a size that is none": (CHUNKED + b"\r\nZZ\r\n", 400),
    "a negative size": (CHUNKED + b"\r\n-5\r\n", 400),
    "a size in another base": (CHUNKED + b"\r\n0x5\r\nabcde\r\n0\r\n\r\n", 400),
    "an empty size": (CHUNKED + b"\r\n\r\n", 400),
    "a size of 17 digits": (CHUNKED + b"\r\n" + b"f" * 17 + b"\r\n", 400),
    "a chunk longer than its size": (CHUNKED + b"\r\n3\r\n{}xx\r\n0\r\n\r\n", 400),
    "a bare LF behind a size": (CHUNKED + b"\r\n2\nab\r\n0\r\n\r\n", 400),
    "a bare LF behind a chunk": (CHUNKED + b"\r\n2\r\nab\n0\r\n\r\n", 400),
    "a trailer that is none": (CHUNKED + b"\r\n0\r\nno trailer\r\n\r\n", 400),
    "a folded trailer": (CHUNKED + b"\r\n0\r\nX: a\r\n b\r\n\r\n", 400),
    "too many trailers": (CHUNKED + b"\r\n0\r\n" + b"X: y\r\n" * (MAX_TRAILERS + 1) + b"\r\n", 431),
    "a trailer that is too long": (
        CHUNKED + b"\r\n0\r\nX: " + b"y" * MAX_TRAILER_BYTES + b"\r\n\r\n",
        431,
    ),
    "a trailer without an end": (CHUNKED + b"\r\n0\r\nX: " + b"y" * MAX_TRAILER_BYTES, 431),
    "trailers without an end": (CHUNKED + b"\r\n0\r\n" + b"X: y\r\n" * 100_000, 431),
    "an extension that is too long": (CHUNKED + b"\r\n1;" + b"x" * 20_000 + b"\r\na\r\n", 431),
    "extensions of many chunks": (CHUNKED + b"\r\n" + b"1;xxxx\r\na\r\n" * 5_000, 431),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_request_that_two_readers_could_take_differently_is_refused(
    server: Served, name: str
) -> None:
    """B1, B2, B8: repeated headers, old versions, endless trailers and more are taken."""
    said, status = REFUSED[name]
    found, code = error_of(await server.exchange(said))
    assert found == status
    assert code
    assert server.application.exchanges == []


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refusal_is_the_same_when_the_request_comes_byte_by_byte(
    server: Served, name: str
) -> None:
    said, status = REFUSED[name]
    client = await server.connect()
    await server.until_state(State.HEAD)
    (connection,) = server.state.connections
    for place in range(len(said[:20_000])):
        if connection.state is not State.DRAINING:
            connection.data_received(said[place : place + 1])
    if len(said) > 20_000 and connection.state is not State.DRAINING:
        connection.data_received(said[20_000:])
    assert error_of(await client.rest())[0] == status


# Requests that HTTP allows.


async def test_trailers_are_dropped_and_never_taken_as_headers(server: Served) -> None:
    """B2: Authorization, Host and X-Forwarded-Proto of a trailer are taken as headers."""
    trailers = (
        b"Authorization: Bearer stolen\r\nHost: evil\r\nX-Forwarded-Proto: https\r\n"
        b"Content-Type: text/evil\r\n"
    )
    said = CHUNKED + b"\r\n2;ext=1\r\nab\r\n1 ; b\r\nc\r\n0\r\n" + trailers + b"\r\n"
    answer = await server.exchange(said + GET[:-2] + CLOSE + b"\r\n")
    assert statuses(answer) == [200, 200]
    first, second = server.application.exchanges
    assert first.body == b"abc"
    assert first.headers == [("host", "a"), ("transfer-encoding", "chunked")]
    assert second.headers == [("host", "a"), ("connection", "close")]


async def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection(server: Served) -> None:
    """B5: chunk sizes appear in the text of a stream that is asked for in HTTP/1.0."""
    client = await server.connect(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    await server.until_state(State.DETACHED)
    assert server.application.kept is not None
    server.application.kept.write(b"x" * 20_000)
    server.application.kept.finish(b"last")
    head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert body == b"first " + b"x" * 20_000 + b"last"
    assert b"transfer-encoding" not in head
    assert b"\r\nconnection: close" in head


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (b"GET /x HTTP/1.0\r\n\r\n", False),
        (b"GET /x HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: TE, Close\r\n\r\n", False),
    ],
    ids=repr,
)
async def test_a_connection_is_kept_where_the_version_or_the_client_asks_for_it(
    server: Served, said: bytes, kept: bool
) -> None:
    client = await server.connect(said)
    answer = await client.until(b'"/x"')
    assert (b"\r\nconnection: close\r\n" in answer) is not kept
    if not kept:
        assert await client.rest() == b""
    elif b"HTTP/1.0" in said:
        assert b"\r\nconnection: keep-alive\r\n" in answer
    else:
        await server.until_state(State.IDLE)


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("part", ["target", "name", "value", "many"])
@pytest.mark.parametrize("pieces", [1, 5])
async def test_431_begins_exactly_behind_64_kib_of_a_head(
    server: Served, part: str, over: int, pieces: int
) -> None:
    """B7: a larger head that comes in one read is served, and a long URL is 400."""
    form = {
        "target": (b"GET /", b"x", b" HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"\r\n"),
        "name": (b"GET /x HTTP/1.1\r\nHost: a\r\n" + CLOSE, b"x", b": y\r\n\r\n"),
        "value": (b"GET /x HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"X: ", b"x", b"\r\n\r\n"),
        "many": (b"GET /x HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"X:", b"\r\nX:", b"\r\n\r\n"),
    }[part]
    room = MAX_HEAD_BYTES + over - len(form[0]) - len(form[2])
    fill = form[1] * (room // len(form[1]))
    said = form[0] + b"y" * (room - len(fill) if part == "many" else 0) + fill + form[2]
    assert len(said) == MAX_HEAD_BYTES + over
    client = await server.connect()
    await server.until_state(State.HEAD)
    (connection,) = server.state.connections
    step = -(-len(said) // pieces)
    for place in range(0, len(said), step):
        connection.data_received(said[place : place + step])
    answer = await client.rest()
    if over:
        assert error_of(answer) == (431, "limit_exceeded")
    else:
        assert statuses(answer) == [200]


async def test_a_url_of_66_000_bytes_is_431(server: Served) -> None:
    """B7: it is 400."""
    said = b"GET /" + b"x" * 66_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    assert error_of(await server.exchange(said)) == (431, "limit_exceeded")


async def test_bodies_and_the_next_heads_do_not_count_as_a_head(server: Served) -> None:
    """B7: a body that arrives with the next head is a false 431 that loses the answer."""
    post = b"POST /x HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000
    large = b"GET /x HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 60_000 + b"\r\n"
    client = await server.connect()
    await server.until_state(State.HEAD)
    (connection,) = server.state.connections
    connection.data_received(post + large + b"\r\n" + post + large + CLOSE + b"\r\n")
    assert statuses(await client.rest()) == [200] * 4
    assert [len(exchange.body) for exchange in server.application.exchanges] == [100_000, 0] * 2


async def test_pipelined_requests_are_answered_one_after_the_other(server: Served) -> None:
    wait = b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n"
    client = await server.connect(wait + GET + b"POST /y HTTP/1.1\r\n" + HOST)
    await server.until_state(State.RESPONSE)
    await client.say(b"Content-Length: 2\r\n\r\nab" + GET[:-2] + CLOSE + b"\r\n")
    assert len(server.application.exchanges) == 1
    server.application.gate.set()
    answer = await client.rest()
    assert statuses(answer) == [200] * 4
    assert answer.index(b'"/wait"') < answer.index(b'"/x"') < answer.index(b'"/y"')


@pytest.mark.promise("P12")
async def test_bytes_after_a_request_are_bounded(server: Served) -> None:
    client = await server.connect(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
    await server.until_state(State.RESPONSE)
    (connection,) = server.state.connections
    said = GET * 200_000
    saying = asyncio.create_task(client.say(said))
    while connection._reads:
        await asyncio.sleep(0.001)
    assert len(connection._held) < 512 * 1024
    saying.cancel()
    server.application.gate.set()
    assert await client.until(b'"/wait"')


async def test_a_100_response_is_sent_only_when_the_application_reads_the_body(
    server: Served,
) -> None:
    head = b"POST /x HTTP/1.1\r\n" + HOST + b"Expect: 100-Continue\r\nContent-Length: 2\r\n"
    client = await server.connect(head + CLOSE + b"\r\n")
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.say(b"ab")
    assert (await client.rest()).startswith(b"HTTP/1.1 200 OK")
    early = await server.connect(head.replace(b"/x", b"/early") + b"\r\n")
    answer = await early.until(b'"/early"')
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"\r\nconnection: close\r\n" in answer  # Nobody knows whether the body comes still.
    present = await server.connect(head + CLOSE + b"\r\nab")
    assert (await present.rest()).startswith(b"HTTP/1.1 200 OK")
    old = await server.connect(head.replace(b"1.1", b"1.0") + b"\r\n")
    await server.until_state(State.BODY, State.DRAINING)
    await old.say(b"ab")
    assert (await old.rest()).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c"])
async def test_a_wish_to_upgrade_is_answered_as_any_request(server: Served, upgrade: bytes) -> None:
    head = HOST + b"Connection: Upgrade\r\nUpgrade: " + upgrade + b"\r\nContent-Length: 2\r\n\r\n"
    said = b"POST /x HTTP/1.1\r\n" + head + b"GE" + GET[:-2] + CLOSE + b"\r\n"
    assert statuses(await server.exchange(said)) == [200, 200]
    assert [exchange.body for exchange in server.application.exchanges] == [b"GE", b""]


async def test_the_host_of_an_absolute_target_replaces_the_header(server: Served) -> None:
    said = b"GET http://b:80/x%20y?z=1 HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"\r\n"
    assert statuses(await server.exchange(said)) == [200]
    (exchange,) = server.application.exchanges
    assert (exchange.path, exchange.query) == ("/x y", "z=1")
    assert exchange.headers == [("host", "b:80"), ("connection", "close")]


async def test_an_answer_to_head_has_the_length_and_no_body(server: Served) -> None:
    answer = await server.exchange(b"HEAD /x HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"\r\ncontent-length: 4\r\n" in answer


async def test_a_client_that_sends_no_more_is_answered_in_full(server: Served) -> None:
    """C17: a half-closed client is cut off."""
    wait = b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n"
    client = await server.connect(GET + wait + GET)
    client.end()
    await server.until_state(State.RESPONSE)
    server.application.gate.set()
    assert statuses(await client.rest()) == [200] * 3


@pytest.mark.promise("P6")
async def test_a_half_closed_reader_is_a_reader(server: Served) -> None:
    """C17: `shutdown(SHUT_WR)` ends a stream."""
    client = await server.connect(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
    client.end()
    assert await client.until(b"first \r\n")
    await stalled(server, 60)
    kept = server.application.kept
    assert kept is not None
    assert not server.application.left.is_set()
    kept.write(b"second")
    kept.finish(b"last")
    assert await client.rest() == b"6\r\nsecond\r\n4\r\nlast\r\n0\r\n\r\n"


@pytest.mark.parametrize("garbage", [b"\0", b"\r\n\r\nnonsense\r\n\r\n", b"x" * 100_000], ids=len)
@pytest.mark.parametrize("is_pipelined", [True, False])
async def test_garbage_behind_a_kept_stream_stays_out_of_its_body(
    server: Served, garbage: bytes, is_pipelined: bool
) -> None:
    """C17: `HTTP/1.1 400` in the middle of the chunked body."""
    request = b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n"
    client = await server.connect(request + garbage if is_pipelined else request)
    assert await client.until(b"first \r\n")
    (connection,) = server.state.connections
    connection.data_received(garbage)
    kept = server.application.kept
    assert kept is not None
    kept.write(b"second")
    kept.finish()
    answer = await client.rest()
    assert answer.startswith(b"6\r\nsecond\r\n0\r\n\r\n")
    assert error_of(answer.partition(b"0\r\n\r\n")[2]) == (400, "invalid_http")


# Applications that fail.


async def test_an_application_that_fails_is_answered_as_other_errors_are(server: Served) -> None:
    answer = await server.exchange(GET.replace(b"/x", b"/crash")[:-2] + CLOSE + b"\r\n")
    assert error_of(answer) == (500, "internal_error")


async def test_an_answer_that_breaks_off_is_not_taken_for_whole(server: Served) -> None:
    answer = await server.exchange(GET.replace(b"/x", b"/half"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\ncontent-length: 7" in head
    assert body == b'"'


# How many there may be.


async def test_one_address_has_as_many_connections_as_it_may_and_no_more() -> None:
    """B4: 400 connections shut a small server."""
    async with served(most=10, each=3) as server:
        clients = [await server.connect() for _ in range(3)]
        await server.until_state(*[State.HEAD] * 3)
        refused = await server.connect()
        assert error_of(await refused.rest()) == (503, "too_many_connections")
        clients[0].close()
        await server.until_state(*[State.HEAD] * 2)
        assert statuses(await server.exchange(GET[:-2] + CLOSE + b"\r\n")) == [200]


async def test_silent_connections_give_way_to_new_ones_and_open_requests_do_not() -> None:
    """B4: connections that say nothing shut others out."""
    async with served(most=3, each=3) as server:
        busy = await server.connect(GET.replace(b"/x", b"/wait"))
        await server.until_state(State.RESPONSE)
        silent = [await server.connect(said) for said in (b"", b"GET /")]
        await server.until_state(State.RESPONSE, State.HEAD, State.HEAD)
        assert error_of(await server.exchange()) == (503, "too_many_connections")
        server.capacity.each = 10  # type: ignore[misc]
        server.pass_time(2)
        assert statuses(await server.exchange(GET[:-2] + CLOSE + b"\r\n")) == [200]
        assert await silent[0].rest() == b""
        server.application.gate.set()
        assert (await busy.until(b'"/wait"')).startswith(b"HTTP/1.1 200")
