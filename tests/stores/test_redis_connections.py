"""Commands over connections that Redis closes, leaves silent or answers wrongly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from reattach.domain.errors import StoreUnavailableError
from reattach.log.redis.client import RedisClient, WaitPolicy, client_for


class FakeRedis:
    """A server that answers GET with the number of its connection, and everything else with OK."""

    def __init__(self) -> None:
        self.port = 0
        self.commands: list[str] = []
        """The names of GETs and PINGs."""
        self.writers: list[asyncio.StreamWriter] = []
        self.answer: bytes | None = None
        """The answer to GET instead of the number."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        number = len(self.writers)
        while head := await reader.readline():
            words = []
            for _ in range(int(head[1:])):
                await reader.readline()
                words.append((await reader.readline()).strip().decode())
            if words[0] in {"GET", "PING"}:
                self.commands.append(words[0])
            if words[0] == "GET":
                writer.write(self.answer or b"$1\r\n%d\r\n" % number)
            else:
                writer.write(b"+PONG\r\n" if words[0] == "PING" else b"+OK\r\n")


@pytest.fixture
async def fake() -> AsyncIterator[FakeRedis]:
    fake = FakeRedis()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    async with server:
        fake.port = server.sockets[0].getsockname()[1]
        yield fake
        for writer in fake.writers:
            writer.close()


@pytest.fixture
async def client(fake: FakeRedis) -> AsyncIterator[RedisClient]:
    options = "health_check_interval=1"
    url = f"redis://127.0.0.1:{fake.port}/0?{options}"
    client = client_for(url, WaitPolicy(answer_seconds=5.0))
    yield client
    await client.aclose()


async def test_a_connection_is_kept_and_is_made_again_once_the_server_has_closed_it(
    fake: FakeRedis, client: RedisClient
) -> None:
    assert [await client.get(b"x") for _ in range(3)] == [b"1"] * 3
    fake.writers[0].close()
    await asyncio.sleep(0.05)
    assert [await client.get(b"x") for _ in range(3)] == [b"2"] * 3


async def test_a_command_whose_connection_breaks_is_sent_again(
    fake: FakeRedis, client: RedisClient
) -> None:
    assert await client.get(b"x") == b"1"
    fake.answer, fake.commands = b"$100\r\nhalf", []
    asked = asyncio.create_task(client.get(b"x"))
    async with asyncio.timeout(10):
        while not fake.commands:
            await asyncio.sleep(0.01)
    fake.answer = None
    fake.writers[0].close()
    assert await asked == b"2"


async def test_answers_of_any_size_come_whole(fake: FakeRedis, client: RedisClient) -> None:
    for size in (0, 1, 65_536, 262_144, 1_000_003):
        fake.answer = b"$%d\r\n%b\r\n" % (size, b"x" * size)
        assert await client.get(b"x") == b"x" * size


async def test_a_connection_that_was_idle_for_long_is_checked_first(
    fake: FakeRedis, client: RedisClient
) -> None:
    await client.get(b"x")
    fake.commands = []
    await client.get(b"x")
    await asyncio.sleep(1.1)
    await client.get(b"x")
    assert fake.commands == ["GET", "PING", "GET"]


@pytest.mark.parametrize("answer", [b"?what\r\n", b"$1\r\n1\r\n$1\r\n2\r\n"])
async def test_a_connection_with_an_answer_too_many_or_that_is_none_is_not_used_again(
    fake: FakeRedis, client: RedisClient, answer: bytes
) -> None:
    fake.answer = answer
    if answer.startswith(b"$"):
        assert await client.get(b"x") == b"1"
    else:
        with pytest.raises(StoreUnavailableError):
            await client.get(b"x")
    fake.answer = None
    assert await client.get(b"x") == b"2"


async def test_a_command_without_an_answer_fails_and_the_next_one_has_a_new_connection(
    fake: FakeRedis,
) -> None:
    url = f"redis://127.0.0.1:{fake.port}/0"
    client = client_for(url, WaitPolicy(answer_seconds=0.2))
    assert await client.get(b"x") == b"1"
    fake.answer = b"$5\r\n"
    with pytest.raises(StoreUnavailableError):
        await client.get(b"x")
    fake.answer = None
    assert await client.get(b"x") == b"2"
    await client.aclose()
