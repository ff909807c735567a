"""The asynchronous client: its streams end from outside, and its token function may be slow."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from reattach import __version__
from reattach.client import Client, ClosedError, State, Stream
from reattach.testing.programs.server import ServerProcess
from tests.support.client_script import RUN
from tests.support.hanging_server import BUSY, HangingServer
from tests.support.threads import WAIT_SECONDS, Threads


@asynccontextmanager
async def connected(**options: object) -> AsyncIterator[tuple[HangingServer, Client]]:
    """Yield a server that hangs after the first event, and a client of it."""
    async with asyncio.timeout(WAIT_SECONDS):
        with HangingServer() as server:
            async with Client(server.url, **options) as client:  # type: ignore[arg-type]
                yield server, client


async def begun(client: Client) -> Stream:
    """Return a stream that has given its only event, so that the next one never comes."""
    stream = client.follow(run_id=RUN)
    assert (await anext(stream))["seq_id"] == 1
    return stream


async def test_the_end_of_a_with_statement_closes_the_connection_of_a_stream() -> None:
    async with connected() as (server, client):
        async with await begun(client) as stream:
            pass
        await asyncio.to_thread(server.wait_left)
        assert stream.state.name == "closed"
        with pytest.raises(ClosedError, match="stream was closed"):
            await anext(stream)


async def test_a_stream_that_is_forgotten_closes_its_connection() -> None:
    async with connected() as (server, client):
        stream = await begun(client)
        gc.disable()
        try:
            del stream
            await asyncio.to_thread(server.wait_left)
        finally:
            gc.enable()


async def test_a_task_that_reads_ends_when_another_one_closes_its_stream() -> None:
    async with connected() as (server, client):
        stream = await begun(client)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        with pytest.raises(ClosedError):
            await reading
        await stream.aclose()
        await asyncio.to_thread(server.wait_left)


async def test_a_task_that_is_cancelled_closes_the_connection_and_the_stream() -> None:
    async with connected() as (server, client):
        stream = await begun(client)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.to_thread(server.wait_left)
        assert stream.state.name == "closed"
        with pytest.raises(ClosedError):
            await anext(stream)


@pytest.mark.parametrize("how", ["close", "try_now"])
async def test_a_wait_for_a_retry_ends_with_the_client_or_when_it_is_asked_to(how: str) -> None:
    waiting = asyncio.Event()

    def see(state: State) -> None:
        if state.name == "waiting":
            waiting.set()

    with HangingServer(BUSY) as server:
        async with Client(server.url) as client, asyncio.timeout(WAIT_SECONDS):
            stream = client.follow(run_id=RUN, on_state=see)
            reading = asyncio.ensure_future(anext(stream))
            await waiting.wait()
            await asyncio.sleep(0)
            if how == "try_now":
                stream.try_now()
                stream.try_now()
                assert (await reading)["seq_id"] == 1
                return
            await client.aclose()
            with pytest.raises(ClosedError):
                await reading


@pytest.mark.promise("P21")
async def test_runs_are_added_and_dropped_while_others_are_read(
    server: ServerProcess, threads: Threads
) -> None:
    """One run hangs until another task drops it; the loop then ends with the other."""
    seqs: dict[str, list[int]] = {}
    async with Client(server.url) as client, asyncio.timeout(WAIT_SECONDS):
        runs = []
        for text in ("[hang=2]", "[chunks=9]"):
            async with client.send(threads.conversation().path_id, text) as sent:
                await anext(sent)
                assert sent.run_id is not None
                runs.append(sent.run_id)
        many = client.many([runs[0]])
        loop = asyncio.get_running_loop()
        async for event in many:
            if "seq_id" not in event:  # A ping; a busy machine has time for one.
                continue
            seqs.setdefault(event["run_id"], []).append(event["seq_id"])
            if event["run_id"] == runs[0] and event["seq_id"] == 3:
                loop.call_soon(many.add, runs[1], 4)
            if event["run_id"] == runs[1] and event["message_type"] == "usage_statistics":
                loop.call_soon(many.drop, runs[0])
        await client.cancel(run_id=runs[0])
    assert many.state.name == "ended"
    assert seqs == {runs[0]: [1, 2, 3], runs[1]: list(range(5, 13))}


# Tokens.


async def test_streams_share_an_answer_of_the_token_function() -> None:
    calls: list[bool] = []

    async def token(fresh: bool) -> str:
        calls.append(fresh)
        await asyncio.sleep(0)
        return "secret"

    async with connected(token=token) as (server, client):
        streams = await asyncio.gather(*(begun(client) for _ in range(4)))
        heads = [await asyncio.to_thread(server.head) for _ in streams]
    assert all("authorization: bearer secret\r\n" in head.lower() for head in heads)
    assert calls == [False]


async def test_a_plain_token_function_that_blocks_does_not_stop_the_event_loop() -> None:
    released = threading.Event()

    def token(fresh: bool) -> str:
        assert released.wait(WAIT_SECONDS)
        return "secret"

    async with connected(token=token) as (_, client):
        reading = asyncio.ensure_future(begun(client))
        await asyncio.sleep(0)
        released.set()
        await reading


@pytest.mark.parametrize("is_plain", [True, False])
async def test_a_token_function_that_never_returns_is_asked_again(is_plain: bool) -> None:
    causes: list[str] = []
    calls: list[bool] = []
    released = threading.Event()

    async def token(fresh: bool) -> str:
        calls.append(fresh)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return "secret"

    def plain_token(fresh: bool) -> str:
        calls.append(fresh)
        if len(calls) == 1:
            released.wait(WAIT_SECONDS)
        return "secret"

    options = {
        "token": plain_token if is_plain else token,
        "token_seconds": 0.05,
        "on_retry": lambda retry: causes.append(retry.cause),
    }
    async with connected(**options) as (_, client):
        await begun(client)
        released.set()
    assert causes == ["the token function failed: TimeoutError: no answer within 0.05 s"]


async def test_a_request_to_another_route_returns_the_decoded_answer(
    server: ServerProcess,
) -> None:
    async with Client(server.url) as client:
        body = {"name": "a", "model": "scripted/echo"}
        agent = await client.request("POST", "/v1/agents/", body=body)
        assert (await client.request("GET", f"/v1/agents/{agent['id']}"))["name"] == "a"


async def test_the_client_names_itself_to_the_server() -> None:
    async with connected() as (server, client):
        await begun(client)
        head = await asyncio.to_thread(server.head)
        assert f"user-agent: reattach-python/{__version__}" in head.lower()
