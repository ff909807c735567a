"""The client reports that its server was restarted, and nothing else as a restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reattach.client import Client, Event, Retry, SyncClient, Takeover
from reattach.testing.programs.relay import Relay
from reattach.testing.programs.server import ServerProcess
from tests.clients.conftest import scripted_server
from tests.support.http_server import listening, read_request

BOUND_SECONDS = 120
SCRIPT = "[chunks=1000][rate=10]"
"""An answer that outlasts every restart; the test cancels it."""
RUN_ID = "run-123e4567-e89b-42d3-8456-426614174000"


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that these tests restart; it hands its runs over at once."""
    directory: Path = tmp_path_factory.mktemp("server")
    with scripted_server(directory, REATTACH_DRAIN_SECONDS="0") as process:
        yield process


@pytest.fixture
def conversation_id(own_server: ServerProcess) -> str:
    with httpx2.Client(base_url=own_server.url) as http:
        agent = http.post("/v1/agents/", json={"name": "a", "model": "scripted/echo"}).json()
        created = http.post("/v1/conversations/", params={"agent_id": agent["id"]}, json={})
        identity: str = created.json()["id"]
        return identity


async def cancel(server: ServerProcess, conversation_id: str) -> None:
    async with httpx2.AsyncClient(base_url=server.url) as http:
        answer = await http.post(f"/v1/conversations/{conversation_id}/cancel")
        answer.raise_for_status()


def assert_whole(events: Sequence[Event]) -> None:
    assert [one["seq_id"] for one in events] == list(range(1, len(events) + 1))
    said = [one["content"] for one in events if one["message_type"] == "assistant_message"]
    assert said == [f"t{number} " for number in range(len(said))]
    assert events[-2].get("stop_reason") == "cancelled"


@pytest.mark.promise("P15", "P19")
async def test_restarts_are_reported_with_their_cause_and_cursor(
    own_server: ServerProcess, conversation_id: str
) -> None:
    refused = asyncio.Event()
    found: list[Takeover] = []
    events: list[Event] = []

    def note_retry(retry: Retry) -> None:
        if retry.cause == "connection refused":
            refused.set()

    async def restart(end: Callable[[], object]) -> None:
        refused.clear()
        await asyncio.to_thread(end)
        await refused.wait()
        await asyncio.to_thread(own_server.start)

    client = Client(own_server.url, on_retry=note_retry, on_takeover=found.append)
    steps = iter((own_server.kill, own_server.stop))
    async with client, asyncio.timeout(BOUND_SECONDS), asyncio.TaskGroup() as tasks:
        restarts = 0
        async for event in client.send(conversation_id, SCRIPT):
            events.append(event)
            if len(found) == restarts:
                restarts += 1
                step = next(steps, None)
                work = cancel(own_server, conversation_id) if step is None else restart(step)
                tasks.create_task(work)
    assert_whole(events)
    assert [(one.cause, one.was_refused) for one in found] == [("crash", True), ("handover", True)]
    assert 0 < found[0].cursor < found[1].cursor < len(events)
    assert all(one.gap_seconds > 0 for one in found)


async def test_a_cut_line_is_no_takeover_and_a_takeover_is_reported_once(
    own_server: ServerProcess, conversation_id: str
) -> None:
    """A relay stands for a proxy: it accepts connections while there is no server behind it."""
    found: list[Takeover] = []
    events: list[Event] = []
    cuts = 0
    """Cuts after the takeover."""

    def restart() -> None:
        own_server.kill()
        own_server.start()

    with Relay(own_server.address) as relay:
        client = Client(relay.url, on_takeover=found.append)
        async with client, asyncio.timeout(BOUND_SECONDS):
            async for event in client.send(conversation_id, SCRIPT):
                events.append(event)
                if len(events) == 2:
                    await asyncio.to_thread(restart)
                elif len(events) == 1 or (found and cuts < 2):
                    cuts += len(found)
                    relay.cut()
                elif cuts == 2:
                    cuts = 3
                    await cancel(own_server, conversation_id)
    assert_whole(events)
    assert [(one.cause, one.was_refused) for one in found] == [("crash", False)]


# A server whose answers come in a certain order.


@asynccontextmanager
async def recorded(
    streams: Sequence[Sequence[tuple[int, str]]],
    attempts: Sequence[Sequence[dict[str, Any]] | None],
    last_seq: int | None,
) -> AsyncIterator[str]:
    """Serve the streams one after the other; all but the last one break off.

    ``attempts`` are those of each look at the run, None for a refusal.
    """
    bodies, looks = iter(streams), iter(attempts)
    ends_at = len(streams)
    count = 0

    def answer(line: str, body: dict[str, Any]) -> tuple[int, str, str]:
        nonlocal count
        if line.startswith("GET") and "/stream" not in line:
            seen = next(looks)
            run = {"id": RUN_ID, "metadata": {"attempts": seen}}
            return (403, "application/json", "{}") if seen is None else (200, "", json.dumps(run))
        if body.get("starting_after", 0) > 1000:
            return 409, "", json.dumps({"detail": "…", "last_seq": last_seq})
        count += 1
        frames = [
            json.dumps({"message_type": kind, "seq_id": seq, "run_id": RUN_ID})
            for seq, kind in next(bodies)
        ]
        frames += ["[DONE]"] if count == ends_at else []
        return 200, "text/event-stream", "".join(f"data: {one}\n\n" for one in frames)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        status, kind, text = answer(request.line, dict(request.body))
        head = f"HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\nx-run-id: {RUN_ID}\r\n"
        writer.write(f"{head}connection: close\r\n\r\n{text}".encode())
        await writer.drain()
        writer.close()

    async with listening(serve) as url:
        yield url


def attempt(first_seq: int, interruption: str | None = "crash") -> dict[str, Any]:
    return {"first_seq": first_seq, "interruption": interruption}


FIRST = attempt(1, None)
SAID, RETURNED = "assistant_message", "tool_return_message"


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        # Taken over before the stream is open, or after, or not before its returns are logged.
        ([[], [FIRST, attempt(4)]], (2, 2)),
        ([[], [], [FIRST, attempt(5)]], (2, 4)),
        # A lost connection; a break of the provider; an attempt that was there before.
        ([[], [], []], None),
        ([[], [], [FIRST, attempt(5, "provider")]], None),
        ([[FIRST, attempt(3)], [FIRST, attempt(3)], [FIRST, attempt(3)]], None),
        # An attempt in another process of which an event came before the connection was lost.
        ([[], [FIRST, attempt(2)], [FIRST, attempt(2)]], None),
        # The attempts cannot be read.
        ([None, [FIRST, attempt(4)]], None),
        ([[], None, None], None),
    ],
)
@pytest.mark.parametrize("is_sync", [False, True], ids=["async", "sync"])
async def test_a_takeover_is_reported_before_its_first_event_and_nothing_else_is(
    is_sync: bool,
    attempts: list[list[dict[str, Any]] | None],
    expected: tuple[int, int] | None,
) -> None:
    """Event 3 was logged before the connection was lost, and 4 is a return of the next process."""
    streams = [[(1, SAID), (2, SAID)], [(3, SAID), (4, RETURNED), (5, SAID), (6, SAID)]]
    found: list[tuple[int, int]] = []
    cursor = 0

    def note(takeover: Takeover) -> None:
        found.append((takeover.cursor, cursor))

    def follow(url: str) -> None:
        nonlocal cursor
        with SyncClient(url, on_takeover=note) as client:
            for event in client.follow("default", otid="key"):
                cursor = event["seq_id"]

    async with recorded(streams, attempts, last_seq=3) as url, asyncio.timeout(BOUND_SECONDS):
        if is_sync:
            await asyncio.to_thread(follow, url)
        else:
            async with Client(url, on_takeover=note) as client:
                async for event in client.follow("default", otid="key"):
                    cursor = event["seq_id"]
    assert cursor == 6
    assert found == ([] if expected is None else [expected])
