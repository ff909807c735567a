"""Readers on real connections that stop reading, read slowly, or are reset."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from reattach.domain.limits import SEND_BUFFER_BYTES
from reattach.testing.programs.relay import reset
from reattach.testing.programs.server import ServerProcess
from tests.support.event_stream import EventStream
from tests.support.raw_clients import Client, client_of
from tests.support.received import Received
from tests.support.stores import eventually

STALL_SECONDS = 1.0
STALLED = 25
BIG = "[chunks=10000][size=500]"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path_factory.mktemp("stalls"),
        arguments=["--scripted", "--log-level", "info"],
        environment={"REATTACH_STALL_SECONDS": str(STALL_SECONDS)},
    ) as server:
        yield server


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[Client]:
    async with client_of(server) as client:
        yield client


class RawReader:
    """A connection with a small kernel buffer that reads only on request."""

    def __init__(self, server: ServerProcess) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(10)
        self._socket.connect(server.address)
        self._body = b""

    def request(self, path: str, body: str = "{}", *, method: str = "POST") -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        self._socket.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())

    async def read(self, count: int) -> int:
        """Read once and return the number of bytes, 0 at the connection's end."""
        try:
            data = await asyncio.to_thread(self._socket.recv, count)
        except ConnectionError:
            return 0
        self._body += data
        return len(data)

    async def read_all(self) -> bytes:
        """Read to the end of the connection and return the body without chunk headers."""
        while await self.read(1 << 20):
            pass
        return self.body

    @property
    def body(self) -> bytes:
        """The body so far, which is chunked (RFC 9112, section 7.1)."""
        _, _, rest = self._body.partition(b"\r\n\r\n")
        body = b""
        while (end := rest.find(b"\r\n")) >= 0:
            size = int(rest[:end], 16)
            body += rest[end + 2 : end + 2 + size]
            rest = rest[end + 2 + size + 2 :]
        return body

    @property
    def ended_properly(self) -> bool:
        return self._body.endswith(b"0\r\n\r\n")

    def reset(self) -> None:
        reset(self._socket)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def raw_reader(server: ServerProcess) -> Iterator[Callable[[], RawReader]]:
    readers: list[RawReader] = []

    def connect() -> RawReader:
        readers.append(RawReader(server))
        return readers[-1]

    yield connect
    for reader in readers:
        reader.close()


def resident_bytes(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text("ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


@pytest.mark.promise("P12", "P4")
async def test_readers_that_read_nothing_use_little_memory_are_disconnected_and_resume_exactly(
    server: ServerProcess, client: Client, raw_reader: Callable[[], RawReader]
) -> None:
    whole = Received()
    async with asyncio.timeout(30):
        run_id = await client.send(await client.conversation(), BIG, whole, otid="big")
        whole_bytes = sum(map(len, whole.frames))
        assert whole_bytes > 5 * 1024 * 1024
        before_bytes = resident_bytes(server)
        cut_off_before = server.output.count("reader cut off")
        stalled = [raw_reader() for _ in range(STALLED)]
        for reader, method in zip(stalled, itertools.cycle(["POST", "GET"]), strict=False):
            reader.request(f"/v1/runs/{run_id}/stream", method=method)
        most_bytes = 0

        def all_are_cut_off() -> bool:
            nonlocal most_bytes
            most_bytes = max(most_bytes, resident_bytes(server))
            return server.output.count("reader cut off") - cut_off_before == STALLED

        other = asyncio.create_task(client.resume(str(run_id), again := Received()))
        await eventually(all_are_cut_off, 20)
        await other
        assert again.frames == whole.frames
        assert most_bytes - before_bytes < STALLED * 4 * SEND_BUFFER_BYTES < whole_bytes * 2

        for reader, form in zip(stalled, (None, EventStream()), strict=False):
            taken = Received()
            body = await reader.read_all()
            taken.feed(body if form is None else form.feed(body))
            taken.reconnect()
            assert not taken.done
            assert not reader.ended_properly
            assert 0 < taken.cursor < whole.cursor
            await client.resume(str(run_id), taken)
            assert taken.frames == whole.frames


@pytest.mark.promise("P12")
async def test_a_slow_reader_is_not_disconnected(
    server: ServerProcess, client: Client, raw_reader: Callable[[], RawReader]
) -> None:
    whole = Received()
    async with asyncio.timeout(30):
        text = "[chunks=1500][size=500]"
        run_id = await client.send(await client.conversation(), text, whole, otid="slow")
        cut_off_before = server.output.count("reader cut off")
        readers = {"POST": raw_reader(), "GET": raw_reader()}
        for method, reader in readers.items():
            reader.request(f"/v1/runs/{run_id}/stream", method=method)
        for _ in range(20):
            for reader in readers.values():
                assert await reader.read(4096)
            await asyncio.sleep(STALL_SECONDS / 10)  # the slowness that is tested
        for method, reader in readers.items():
            while not reader.ended_properly:
                assert await reader.read(1 << 20)
            slow = Received()
            slow.feed(reader.body if method == "POST" else EventStream().feed(reader.body))
            assert slow.frames == whole.frames
        assert server.output.count("reader cut off") == cut_off_before


@pytest.mark.promise("P6", "P12")
async def test_a_run_whose_readers_are_all_reset_continues_to_its_end(
    client: Client, raw_reader: Callable[[], RawReader]
) -> None:
    conversation_id = await client.conversation()
    readers = [raw_reader() for _ in range(3)]
    readers[0].request(
        f"/v1/conversations/{conversation_id}/messages",
        '{"input": "[chunks=60][rate=60]", "background": true, "stream_tokens": true}',
    )
    async with asyncio.timeout(30):
        assert await readers[0].read(64 * 1024)
        (run,) = await client.got("/v1/runs/", active=True)
        for reader, method in zip(readers[1:], ("POST", "GET"), strict=True):
            reader.request(f"/v1/runs/{run['id']}/stream", method=method)
            assert await reader.read(64 * 1024)
        for reader in readers:
            reader.reset()
        assert (await client.got(f"/v1/runs/{run['id']}"))["status"] == "running"
        whole = Received()
        await client.resume(run["id"], whole)
    assert whole.end() == {"stop_reason": "end_turn", "error_type": None}
    assert whole.text == "".join(f"t{number} " for number in range(60))
    assert (await client.got(f"/v1/runs/{run['id']}"))["status"] == "completed"
    assert await client.stored_text(conversation_id, run["id"]) == whole.text


@pytest.mark.promise("P6")
async def test_cancelling_over_http_returns_the_status_of_each_run(client: Client) -> None:
    conversation_id = await client.conversation()
    received, ended = Received(), Received()
    async with asyncio.timeout(30):
        run_id = await client.send(conversation_id, "all of it", ended, otid="ended")
        begun = asyncio.Event()
        sending = asyncio.create_task(
            client.send(conversation_id, "[hang=3]", received, otid="hangs", on_read=begun.set)
        )
        await begun.wait()
        cancelled = await client.post(f"/v1/conversations/{conversation_id}/cancel", {})
        assert cancelled.status_code == 200
        await sending
        assert received.end() == {"stop_reason": "cancelled", "error_type": None}
        assert received.run_id is not None
        assert cancelled.json() == {received.run_id: "cancelled"}
        again = await client.post(f"/v1/conversations/{conversation_id}/cancel", {})
        assert (again.status_code, again.json()["code"]) == (409, "no_active_runs")
        agent_id = (await client.got(f"/v1/conversations/{conversation_id}"))["agent_id"]
        by_ids = await client.post(
            f"/v1/agents/{agent_id}/messages/cancel", {"run_ids": [run_id, received.run_id]}
        )
        assert by_ids.json() == {run_id: "completed", received.run_id: "cancelled"}
