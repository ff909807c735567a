"""A server that is killed, restarted and drained behind real proxies with the files of deploy/.

The two servers share no store, so a test sees which one has answered.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from reattach.testing.programs.server import ServerProcess
from tests.deploy.conftest import KINDS, Keyed
from tests.deploy.upstream import WAIT_SECONDS
from tests.support.raw_clients import Client, client_of, start
from tests.support.received import Received
from tests.support.stores import eventually

BOUND_SECONDS = 60.0


class Stream:
    """Open the stream of a run that yields three events and then nothing."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.run_id: str = answer.headers["x-run-id"]
        self.received = Received()
        self._pieces = answer.aiter_raw()

    async def start(self) -> None:
        while self.received.cursor < 3:
            self.received.feed(await anext(self._pieces))

    async def to_end(self) -> None:
        async for piece in self._pieces:
            self.received.feed(piece)


class Proxied:
    """A client of a proxy in front of the server ``mortal`` and another one."""

    def __init__(self, name: str, client: Client, mortal: ServerProcess) -> None:
        self.client = client
        self.made: list[str] = []
        self._name = name
        self._mortal = mortal
        self._conversation_id = ""

    async def make_agents(self) -> None:
        """Create ten agents, each by one POST that must succeed."""
        for _ in range(10):
            self.made.append(f"{self._name}-{len(self.made)}")
            body = {"name": self.made[-1], "model": "scripted/echo"}
            made = await self.client.post("/v1/agents/", body)
            assert made.status_code == 200, made.text

    async def reaches_mortal(self) -> bool:
        answer = await self.client.http.get(f"/v1/conversations/{self._conversation_id}")
        assert answer.status_code in {200, 404}
        return answer.status_code == 200

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[Stream]:
        """Open a stream from ``mortal``, which alone has the conversation."""
        async with client_of(self._mortal) as direct:
            self._conversation_id = await direct.conversation()
        path = f"/v1/conversations/{self._conversation_id}/messages"
        body = {
            "messages": [{"role": "user", "content": "[hang=3]"}],
            "background": True,
            "stream_tokens": True,
        }
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                async with self.client.http.stream("POST", path, json=body) as answer:
                    if answer.status_code == 404:  # that was the other server
                        await answer.aread()
                        continue
                    assert answer.status_code == 200
                    stream = Stream(answer)
                    await stream.start()
                    yield stream
                    return


async def names_at(server: ServerProcess) -> list[str]:
    async with client_of(server) as client:
        agents = await client.got("/v1/agents/", limit=1000)
        return [agent["name"] for agent in agents]


@pytest.mark.promise("P9", "P15")
async def test_while_a_server_dies_returns_and_drains_the_other_one_is_used(
    server: ServerProcess, keyed: Keyed, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(keyed.directory, data_dir)
    mortal = ServerProcess(
        data_dir,
        arguments=["--scripted", "--log-level", "warning"],
        environment={"REATTACH_CONTINUE": "false"},  # A drain would wait for runs of before.
    )
    mortal.api_key = keyed.secret
    async with AsyncExitStack() as stack:
        stack.enter_context(mortal)
        ways = []
        for program, configuration in KINDS:
            proxy = stack.enter_context(program(configuration, [mortal.address, server.address]))
            headers = {"Authorization": f"Bearer {keyed.secret}"}
            http = httpx2.AsyncClient(base_url=proxy.url, timeout=WAIT_SECONDS, headers=headers)
            await stack.enter_async_context(http)
            ways.append(Proxied(program.name, Client(http), mortal))
        haproxy, nginx = ways

        # It is killed: bodies are cut, and no request fails or is executed twice.
        async with haproxy.stream() as first, nginx.stream() as second:
            mortal.kill()
            for stream in first, second:
                with pytest.raises(httpx2.TransportError):
                    await stream.to_end()
                assert not stream.received.done
        for way in ways:
            await way.make_agents()
        counted = Counter(await names_at(server))
        assert {counted[name] for way in ways for name in way.made} == {1}

        # It returns and gets requests again.
        await start(mortal)
        for way in ways:
            await eventually(way.reaches_mortal, BOUND_SECONDS)
        assert not {name for way in ways for name in way.made} & set(await names_at(mortal))

        # It drains: its streams continue to their ends, and HAProxy sends no new requests.
        async with haproxy.stream() as first, nginx.stream() as second:
            mortal.signal(signal.SIGTERM)
            in_a_row = 0
            async with asyncio.timeout(BOUND_SECONDS):
                while in_a_row < 10:
                    in_a_row = 0 if await haproxy.reaches_mortal() else in_a_row + 1
            async with client_of(mortal) as direct:
                for stream in first, second:
                    assert not stream.received.done
                    run = await direct.got(f"/v1/runs/{stream.run_id}")
                    path = f"/v1/agents/{run['agent_id']}/messages/cancel"
                    await direct.post(path, {"run_ids": [stream.run_id]})
                    await stream.to_end()
                    assert stream.received.end()["stop_reason"] == "cancelled"
        assert await asyncio.to_thread(mortal.wait) == 0
        for way in ways:
            await way.make_agents()
        counted = Counter(await names_at(server))
        assert {counted[name] for way in ways for name in way.made} == {1}
